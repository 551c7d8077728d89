"""Statistics of all training rows, over the shards of all workers: for the scaling, and for what float32 would lose."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from distbp.data import Rows, Scaling, column_name, minmax, precarious, standard
from distbp.data.shard import Shard
from distbp.errors import InputError
from distbp.train.exchange import Exchange, Group
from distbp.train.phases import Phases
from distbp.train.tree import total

_ROWS, _ELEMENTS = 1024, 1 << 20  # of a block, at most


class RowStatistics:
    """The training rows of a run; all workers call the same methods.

    Parameters
    ----------
    rows:
        The training part.
    shards:
        Those of this worker, before they are prepared.
    shape:
        Of one row of features.
    """

    def __init__(
        self,
        rows: Rows,
        shards: dict[int, Shard],
        shape: tuple[int, ...],
        group: Group,
        exchange: Exchange,
        phases: Phases,
    ) -> None:
        self.rows, self.shards, self.shape = rows, shards, shape
        self.group, self.exchange, self.phases = group, exchange, phases

    def scaling(self, kind: str) -> Scaling:
        """Return the scaling of this ``kind``, fitted on all training rows: sums over shards, along the tree."""
        low, high = self._bounds()
        if kind == "standard":
            sums = total(self._over(np.sum, lambda x: x)).reshape(self.shape)
            mean = sums / len(self.rows)
            squares = total(self._over(np.sum, lambda x: (x - mean) ** 2)).reshape(self.shape)
        with self.group.agreement():
            return minmax(low, high) if kind == "minmax" else standard(len(self.rows), sums, squares, low < high)

    def check_rounding(self, dtype: np.dtype) -> None:
        """Raise InputError where a feature is rounded to ``dtype``, and its content lies in what is lost.

        Integers were looked at one by one; those that came as float64, as beside a column of measurements, were not.
        """
        rows = self.rows
        if rows.x.dtype.kind != "f" or rows.x.dtype.itemsize <= dtype.itemsize:
            return
        low, high = self._bounds()
        narrow, large = precarious(low, high, dtype)
        if (narrow | large).any():
            is_rounded = self._over(np.max, lambda x: x.astype(dtype) != x).any(axis=0).reshape(self.shape)
            has_fraction = self._over(np.max, lambda x: np.rint(x) != x).any(axis=0).reshape(self.shape)
            bad = is_rounded & (narrow | large & ~has_fraction)
            with self.group.agreement():
                if bad.any():
                    column = int(np.argmax(bad))
                    span = f"numbers from {low.flat[column]!s} to {high.flat[column]!s}"
                    raise InputError(
                        f"features that differ also in {dtype}",
                        f"{column_name(column, rows.columns)} of {span}",
                        "set scaling: standard, which is computed in float64, or dtype: float64",
                        rows.where,
                    )

    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the least and the largest value of each feature."""
        largest = self._over(np.max, lambda x: np.stack([-x, x], axis=1), 2).max(axis=0)
        low, high = largest.reshape(2, *self.shape)
        return -low, high

    def _over(self, reduce: Callable[..., Any], f: Callable[[np.ndarray], np.ndarray], n: int = 1) -> np.ndarray:
        """Return ``reduce`` over the rows x of each shard of f(x), ``n`` values a feature (n_shards, ...)."""
        n_features = math.prod(self.shape)
        n_block = max(1, min(_ROWS, _ELEMENTS // n_features))
        values = []
        for shard in self.shards.values():
            starts = range(0, len(shard), n_block)
            values.append(reduce([reduce(f(shard.raw(k, k + n_block)), axis=0) for k in starts], axis=0))
            self.phases.lap("forward")
        return self.exchange.allgather(np.array(values).reshape(len(self.shards), n * n_features))
