"""Features of some rows, ready for the network, and those of one shard with their targets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np

from distbp.data.dataset import Rows
from distbp.data.numbers import check_numbers
from distbp.data.scaling import Scaling
from distbp.data.sparse import Matrix, SparseRows, arrays_of, in_sequence

_BLOCK_ROWS = 1024


def copy_rows(source: np.ndarray, places: np.ndarray | slice, out: np.ndarray) -> None:
    """Write the rows at ``places`` of ``source`` into ``out``."""
    if isinstance(places, slice):
        out[...] = source[places]
    else:
        source.take(places, 0, out, "clip")


class Features:
    """The features of some rows of a part of the dataset, in the dtype of the network.

    Features in memory are copied once; those of a memory map or a sparse matrix are read when they are needed, batch by
    batch. The bits are the same.

    Parameters
    ----------
    rows:
        The whole part.
    places:
        Of these rows in that part.
    dtype:
        Of the features.
    is_scaled:
        Whether ``prepare``, which must be called before the rows are used, will be given a scaling.
    read:
        Is given the rows, block by block, as they are read for the first time.

    Raises
    ------
    InputError
        Where a feature is none that the network can take; names row and column.
    """

    def __init__(
        self,
        rows: Rows,
        places: np.ndarray,
        dtype: np.dtype,
        *,
        is_scaled: bool = False,
        read: Callable[[Matrix], None] = lambda _: None,
    ) -> None:
        self.index = rows.index(places)
        self.numbers, self.where = rows.numbers(places), rows.where  # as the user counts them
        exact = np.dtype(np.float64) if is_scaled else dtype
        numbers, columns = self.numbers, rows.columns
        check_numbers(rows.x, self.index, dtype, rows.where, exact=exact, numbers=numbers, columns=columns, read=read)
        self.dtype = dtype
        self.scaling: Scaling | None = None
        self.source: Matrix | None = rows.x
        self.x: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.index)

    def raw(self, start: int, stop: int) -> np.ndarray:
        """Return the features at the places start..stop-1 as they were given, in float64; only before ``prepare``."""
        assert self.source is not None
        return np.asarray(self.source[self.index[start:stop]], np.float64)

    def prepare(self, scaling: Scaling | None, *, at_once: bool = True) -> None:
        """Scale the features: those in memory now, if that is to be done ``at_once``, else whenever they are read."""
        self.scaling = scaling
        assert self.source is not None
        if not at_once or isinstance(self.source, (np.memmap, SparseRows)):
            return
        x = np.empty((len(self), *self.source.shape[1:]), self.dtype)
        for start in range(0, len(self), _BLOCK_ROWS):
            self._read(slice(start, start + _BLOCK_ROWS), x[start : start + _BLOCK_ROWS])
        self.x, self.source = x, None

    def read(self, places: np.ndarray | slice, x: np.ndarray) -> None:
        """Write the features at ``places`` of these rows into ``x``."""
        if self.x is None:
            self._read(places, x)
        else:
            copy_rows(self.x, places, x)

    def _read(self, places: np.ndarray | slice, x: np.ndarray) -> None:
        source, index = self.source, in_sequence(self.index[places])
        assert source is not None
        if self.scaling is not None:
            self.scaling.apply(source[index], x)
        elif isinstance(source, np.ndarray) and source.dtype == x.dtype:
            copy_rows(source, index, x)
        else:
            x[...] = source[index]

    def columns(self, columns: np.ndarray) -> np.ndarray:
        """Return these ``columns`` of the features, the rows flattened (n, n_columns)."""
        if self.x is not None:
            return self.x.reshape(len(self), -1)[:, columns]
        assert self.source is not None
        if isinstance(self.source, SparseRows):
            raw = self.source.columns(self.index, columns)
        else:
            raw = self.source.reshape(len(self.source), -1)[self.index[:, None], columns]
        if self.scaling is None:
            return raw.astype(self.dtype)
        return self.scaling.of_columns(columns).apply(raw, np.empty(raw.shape, self.dtype))

    def of_zeros(self, columns: np.ndarray) -> np.ndarray:
        """Return what these ``columns`` of a row of zeros are for the network (n_columns,)."""
        zeros = np.zeros(len(columns), self.dtype)
        return zeros if self.scaling is None else self.scaling.of_columns(columns).apply(zeros, zeros.copy())


class Shard(Features):
    """The rows of one shard.

    Parameters
    ----------
    targets:
        The targets of these rows, as the loss takes them.

    Attributes
    ----------
    digest:
        Where it ``has_digest``, of the rows as they were given and the targets: a hash that tells them from others.
    """

    def __init__(
        self,
        rows: Rows,
        places: np.ndarray,
        targets: np.ndarray,
        dtype: np.dtype,
        *,
        is_scaled: bool = False,
        has_digest: bool = False,
    ) -> None:
        told = hashlib.sha256(f"{rows.x.shape[1:]} {rows.x.dtype.str} {targets.dtype.str}".encode())

        def tell(part: Matrix) -> None:
            for array in arrays_of(part):
                told.update(np.ascontiguousarray(array).data)

        super().__init__(rows, places, dtype, is_scaled=is_scaled, read=tell if has_digest else lambda _: None)
        self.targets, self.digest = targets, ""
        if has_digest:
            tell(targets)
            self.digest = told.hexdigest()

    def gather(self, places: np.ndarray | slice, x: np.ndarray, t: np.ndarray) -> None:
        """Write the features and targets at ``places`` of this shard into ``x`` and ``t``."""
        copy_rows(self.targets, places, t)
        self.read(places, x)
