"""Rows of which only the entries other than zero are stored (CSR); they are made dense when they are read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class SparseRows:
    """A sparse matrix (n, n_columns), read like an array: ``x[places]`` are dense rows.

    Parameters
    ----------
    data, indices:
        The stored entries and their columns, row after row; no column twice in a row.
    indptr:
        The entries of row i are those from ``indptr[i]`` to ``indptr[i + 1]`` (n + 1,).
    """

    data: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray
    n_columns: int

    @classmethod
    def of(cls, matrix: Any) -> SparseRows:
        """Return the rows of ``matrix``, of any format of SciPy."""
        csr = matrix.tocsr()
        if not csr.has_canonical_format:  # an entry that is stored twice is the sum of both
            csr = csr.copy()
            csr.sum_duplicates()
        return cls(csr.data, csr.indices, csr.indptr.astype(np.int64), csr.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self.n_columns

    @property
    def ndim(self) -> int:
        return 2

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.data.dtype

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def __getitem__(self, places: np.ndarray | slice) -> np.ndarray:
        """Return the rows at ``places`` as a dense array (n_places, n_columns)."""
        taken = self.take(np.arange(*places.indices(len(self))) if isinstance(places, slice) else places)
        dense = np.zeros(taken.shape, self.dtype)
        dense[np.repeat(np.arange(len(taken)), np.diff(taken.indptr)), taken.indices] = taken.data
        return dense

    def take(self, places: np.ndarray) -> SparseRows:
        """Return the rows at ``places`` alone."""
        starts, counts = self.indptr[places], self.indptr[places + 1] - self.indptr[places]
        indptr = np.concatenate([[0], np.cumsum(counts)])
        entries = np.arange(indptr[-1]) + np.repeat(starts - indptr[:-1], counts)
        return SparseRows(self.data[entries], self.indices[entries], indptr, self.n_columns)

    def columns(self, places: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Return these ``columns``, in ascending order, of the rows at ``places`` as an array (n_places, n_columns)."""
        taken = self.take(places)
        at = np.minimum(np.searchsorted(columns, taken.indices), len(columns) - 1)
        found = columns[at] == taken.indices
        dense = np.zeros((len(taken), len(columns)), self.dtype)
        dense[np.repeat(np.arange(len(taken)), np.diff(taken.indptr))[found], at[found]] = taken.data[found]
        return dense

    def in_order(self, order: np.ndarray) -> SparseRows:
        """Return the rows with their columns in this ``order``."""
        new = np.empty(self.n_columns, self.indices.dtype)
        new[order] = np.arange(self.n_columns)
        return replace(self, indices=new[self.indices])

    def position(self, entry: int) -> tuple[int, int]:
        """Return row and column of a stored entry."""
        return int(np.searchsorted(self.indptr, entry, "right")) - 1, int(self.indices[entry])


Matrix = np.ndarray | SparseRows
"""Features as they lie in memory or in a file."""


def arrays_of(x: Matrix) -> tuple[np.ndarray, ...]:
    """Return the arrays that hold the numbers of ``x``."""
    return (x.data, x.indices, x.indptr) if isinstance(x, SparseRows) else (x,)


def in_sequence(places: np.ndarray) -> np.ndarray | slice:
    """Return ``places``, as a slice if each is the one after that before it: an array need not be copied then."""
    if len(places) and places[-1] - places[0] == len(places) - 1 and (places[1:] > places[:-1]).all():
        return slice(int(places[0]), int(places[-1]) + 1)
    return places
