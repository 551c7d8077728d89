"""Rows and their targets, by part: training, validation, test."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from distbp.errors import InputError

CHECK_ROWS = 8192


@dataclass(frozen=True)
class Rows:
    """The features ``x`` (n, ...) and the targets ``y`` (n,) or (n, k); both may be memory maps.

    Parameters
    ----------
    where:
        What they are called in messages.
    chosen:
        The numbers of the rows that are meant; None for all. Nothing is copied to choose them.

    Raises
    ------
    InputError
        Where x and y differ in length, or x holds something other than numbers.
    """

    x: np.ndarray
    y: np.ndarray
    where: str = "data"
    chosen: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name, array in (("x", self.x), ("y", self.y)):
            if array.dtype.kind not in "biuf":
                raise InputError(f"numbers in {name}", f"dtype {array.dtype}", "convert it to numbers", self.where)
        if self.x.ndim < 2:
            raise InputError(
                "features of shape (rows, n) or more",
                f"shape {self.x.shape}",
                "reshape x, as in x[:, None]",
                self.where,
            )
        if self.y.ndim not in (1, 2):
            raise InputError("targets of shape (rows,) or (rows, k)", f"shape {self.y.shape}", "reshape y", self.where)
        if len(self.x) != len(self.y):
            raise InputError(
                "as many rows of features as of targets", f"{len(self.x)} and {len(self.y)}", "correct one", self.where
            )
        if len(self.x) == 0:
            raise InputError("at least one row", "none", "give data", self.where)

    def __len__(self) -> int:
        return len(self.x) if self.chosen is None else len(self.chosen)

    def choose(self, places: np.ndarray) -> Rows:
        """Return the rows at these places of the chosen ones."""
        return Rows(self.x, self.y, self.where, self.index(places))

    def index(self, places: np.ndarray) -> np.ndarray:
        """Return where the rows at these places lie in ``x`` and ``y``."""
        return places if self.chosen is None else self.chosen[places]

    def numbers(self, places: np.ndarray) -> np.ndarray:
        """Return the numbers by which messages call the rows at these places."""
        return self.index(places)

    def hold(self, places: np.ndarray) -> HeldRows:
        """Return these rows, of which only those at ``places`` (in ascending order) are kept."""
        at = self.index(places)
        x, y = np.ascontiguousarray(self.x[at]), np.ascontiguousarray(self.y[at])
        return HeldRows(x, y, self.where, None, len(self), places, self.numbers(places))


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


def check_finite(array: np.ndarray, rows: np.ndarray, where: str, numbers: np.ndarray | None = None) -> None:
    """Raise InputError, naming row and column, where ``array[rows]`` holds NaN or an infinity.

    ``numbers`` are what messages call these rows, by default their place in the array.
    """
    if array.dtype.kind != "f":
        return
    for start in range(0, len(rows), CHECK_ROWS):
        part = np.asarray(array[rows[start : start + CHECK_ROWS]]).reshape(len(rows[start : start + CHECK_ROWS]), -1)
        finite = np.isfinite(part)
        if not finite.all():
            row, column = np.argwhere(~finite)[0]
            raise InputError(
                "finite numbers",
                f"{part[row, column]} in row {(rows if numbers is None else numbers)[start + row]}, column {column}",
                "clean the data, for example by leaving that row out",
                where,
            )


@dataclass(frozen=True)
class Dataset:
    """A training part and, where there are such rows, a validation and a test part."""

    train: Rows
    validation: Rows | None = None
    test: Rows | None = None

    @property
    def parts(self) -> dict[str, Rows]:
        """The parts that exist, by name."""
        all_parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: rows for name, rows in all_parts.items() if rows is not None}

    def __post_init__(self) -> None:
        for name, rows in self.parts.items():
            if rows.x.shape[1:] != self.train.x.shape[1:] or rows.y.shape[1:] != self.train.y.shape[1:]:
                raise InputError(
                    f"{name} rows shaped like the training rows, {self.train.x.shape[1:]} -> {self.train.y.shape[1:]}",
                    f"{rows.x.shape[1:]} -> {rows.y.shape[1:]}",
                    "reshape one of them",
                    rows.where,
                )
