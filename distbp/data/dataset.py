"""Rows and their targets, by part: training, validation, test."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from distbp.data.columns import Columns, in_order
from distbp.data.form import RowForm
from distbp.data.numbers import check_kind
from distbp.data.sparse import Matrix, SparseRows, arrays_of, in_sequence
from distbp.errors import InputError

MOST_BYTES = 1 << 28
"""Of each part, to tell rows from others."""

_SAMPLED = 64  # rows of each part, if that is more
_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True)
class Rows:
    """The features ``x`` (n, ...) and the targets ``y`` (n,) or (n, k); both may be memory maps.

    Parameters
    ----------
    where:
        What they are called in messages.
    chosen:
        The numbers of the rows that are meant; None for all. Nothing is copied to choose them.
    columns, targets:
        The names of the columns of x and of y, where they have some; a single target needs none.

    Raises
    ------
    InputError
        Where x and y differ in length, or x holds something other than numbers.
    """

    x: Matrix
    y: np.ndarray
    where: str = "data"
    chosen: np.ndarray | None = None
    columns: Columns | None = None
    targets: Columns | None = None

    def __post_init__(self) -> None:
        check_features(self.x, self.where)
        check_kind(self.y.dtype, "y", self.where)
        if self.y.ndim not in (1, 2):
            raise InputError("targets of shape (rows,) or (rows, k)", f"shape {self.y.shape}", "reshape y", self.where)
        if 0 in self.y.shape[1:]:
            raise InputError("at least one target a row", f"targets of shape {self.y.shape}", "give data", self.where)
        if len(self.x) != len(self.y):
            raise InputError(
                "as many rows of features as of targets", f"{len(self.x)} and {len(self.y)}", "correct one", self.where
            )
        if len(self.x) == 0:
            raise InputError("at least one row", "none", "give data", self.where)

    def __len__(self) -> int:
        return len(self.x) if self.chosen is None else len(self.chosen)

    @property
    def form(self) -> RowForm:
        """What one of them looks like."""
        return RowForm(
            input_shape=self.x.shape[1:], columns=self.columns, targets=self.targets, has_flat_targets=self.y.ndim == 1
        )

    def choose(self, places: np.ndarray) -> Rows:
        """Return the rows at these places of the chosen ones."""
        return replace(self, chosen=self.index(places))

    def in_order(self, columns: Columns | None, targets: Columns | None) -> Rows:
        """Return the rows with features and targets in the order of these names (``distbp.data.columns.in_order``)."""
        x = in_order(self.x, self.columns, columns, self.where)
        y = self.y
        if self.y.ndim == 2:
            y = np.asarray(in_order(y, self.targets, targets, f"{self.where}, targets"))
        return replace(self, x=x, y=y, columns=columns or self.columns, targets=targets or self.targets)

    def index(self, places: np.ndarray) -> np.ndarray:
        """Return where the rows at these places lie in ``x`` and ``y``."""
        return places if self.chosen is None else self.chosen[places]

    def numbers(self, places: np.ndarray) -> np.ndarray:
        """Return the numbers by which messages call the rows at these places."""
        return self.index(places)

    def hold(self, places: np.ndarray) -> HeldRows:
        """Return these rows, of which only those at ``places`` (in ascending order) are kept."""
        at = self.index(places)
        x = self.x.take(at) if isinstance(self.x, SparseRows) else np.ascontiguousarray(self.x[at])
        y = np.ascontiguousarray(self.y[at])
        return HeldRows(x, y, self.where, None, self.columns, self.targets, len(self), places, self.numbers(places))


@dataclass(frozen=True)
class HeldRows(Rows):
    """A part of which ``x`` and ``y`` hold only some rows: those that one worker needs.

    Parameters
    ----------
    n_rows:
        Rows of the whole part.
    held, names:
        The places of the rows that are held, in ascending order, and the numbers by which messages call them.
    """

    n_rows: int = 0
    held: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    names: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        pass  # checked where they were taken from; a worker may hold none

    def __len__(self) -> int:
        return self.n_rows

    def index(self, places: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.held, places)

    def numbers(self, places: np.ndarray) -> np.ndarray:
        return self.names[self.index(places)]


def check_features(x: Matrix, where: str) -> None:
    """Raise InputError where ``x`` cannot be features: rows of numbers."""
    check_kind(x.dtype, "x", where)
    if x.ndim < 2:
        remedy = "reshape x: x[:, None] is one column, x[None, :] one row"
        raise InputError("features of shape (rows, n) or more", f"shape {x.shape}", remedy, where)
    if 0 in x.shape[1:]:
        raise InputError("at least one column", f"features of shape {x.shape}", "give data", where)


@dataclass(frozen=True)
class Dataset:
    """A training part and, where there are such rows, a validation and a test part.

    Attributes
    ----------
    files:
        Name, size and time of change of the files that the rows come from, as they were when these were opened; empty
        for rows that were handed over.
    """

    train: Rows
    validation: Rows | None = None
    test: Rows | None = None
    files: tuple[str, ...] = ()

    @classmethod
    def of(cls, parts: Mapping[str, Rows], files: tuple[str, ...] = ()) -> Dataset:
        """Return the dataset of these ``parts``, by name."""
        return cls(parts["train"], parts.get("validation"), parts.get("test"), files)

    @property
    def parts(self) -> dict[str, Rows]:
        """The parts that exist, by name."""
        all_parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: rows for name, rows in all_parts.items() if rows is not None}

    def digest(self, n_bytes: int = 0) -> str:
        """Return what tells these rows from others: a hash of the shapes, and of all rows of each part.

        Of parts larger than ``n_bytes``, so much is read, spread evenly over the rows; at least a sample.
        """
        digest = hashlib.sha256()
        for name, rows in self.parts.items():
            digest.update(f"{name} {len(rows)} {rows.x.shape} {rows.x.dtype} {rows.y.shape} {rows.y.dtype}".encode())
            row_bytes = -(-sum(array.nbytes for array in (*arrays_of(rows.x), rows.y)) // len(rows.x))
            n = min(len(rows), max(_SAMPLED, n_bytes // row_bytes))
            places = rows.index(np.linspace(0, len(rows) - 1, n).astype(np.int64))
            n_block = max(1, _BLOCK_BYTES // row_bytes)
            for start in range(0, n, n_block):
                at = in_sequence(places[start : start + n_block])
                x = rows.x.take(places[start : start + n_block]) if isinstance(rows.x, SparseRows) else rows.x[at]
                for array in (*arrays_of(x), rows.y[at]):
                    digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def __post_init__(self) -> None:
        for name, rows in self.parts.items():
            if rows.x.shape[1:] != self.train.x.shape[1:]:
                expected = f"{name} features shaped like those of the training, {self.train.x.shape[1:]}"
                raise InputError(expected, f"{rows.x.shape[1:]}", "reshape one of them", rows.where)
