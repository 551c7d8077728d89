"""The rows that one shard holds, ready for the network."""

from __future__ import annotations

import numpy as np

from distbp.data.dataset import Rows, check_finite
from distbp.data.scaling import Scaling


class Shard:
    """Some rows of a part of the dataset, in the dtype of the network.

    Features in memory are copied once; those of a memory map are read when they are needed, batch by batch.

    Parameters
    ----------
    rows:
        The whole part.
    places:
        Of the rows of this shard in that part.
    targets:
        The targets of these rows, as the loss takes them.
    dtype:
        Of the features.

    Raises
    ------
    InputError
        Where a feature is NaN or infinite; names row and column.
    """

    def __init__(self, rows: Rows, places: np.ndarray, targets: np.ndarray, dtype: np.dtype) -> None:
        self.index = rows.index(places)
        self.numbers, self.where = rows.numbers(places), rows.where  # as the user counts them
        check_finite(rows.x, self.index, rows.where, self.numbers)
        self.dtype = dtype
        self.targets = targets
        self.scaling: Scaling | None = None
        self.source: np.ndarray | None = rows.x if isinstance(rows.x, np.memmap) else None
        self.x = None if self.source is not None else np.asarray(rows.x[self.index], dtype)

    def __len__(self) -> int:
        return len(self.index)

    def scale(self, scaling: Scaling) -> None:
        """Scale the features from now on."""
        self.scaling = scaling
        if self.x is not None:
            scaling.apply(self.x)

    def gather(self, places: np.ndarray, x: np.ndarray, t: np.ndarray) -> None:
        """Write the features and targets at ``places`` of this shard into ``x`` and ``t``."""
        self.targets.take(places, 0, t, "clip")
        if self.x is not None:
            self.x.take(places, 0, x, "clip")
            return
        assert self.source is not None
        x[...] = self.source[self.index[places]]
        if self.scaling is not None:
            self.scaling.apply(x)

    def features(self, start: int, stop: int) -> np.ndarray:
        """Return the features at the places start..stop-1, before any scaling, in float64."""
        raw = self.x[start:stop] if self.x is not None else self.source[self.index[start:stop]]  # type: ignore[index]
        return np.asarray(raw, np.float64)
