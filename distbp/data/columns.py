"""Columns by name: those of a data frame keep their names, and are put in order by them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import numpy as np

from distbp.data.sparse import Matrix, SparseRows
from distbp.errors import InputError

Columns = tuple[str, ...]

_NAMED = 5


def columns_of(names: Iterable[object], where: str) -> Columns | None:
    """Return the names of the columns; None where they are but numbers from 0. Raise InputError where one comes twice.

    What is no string is named as Python writes it.
    """
    given = tuple(names)
    if _are_places(given):
        return None
    columns = tuple(name if isinstance(name, str) else repr(name) for name in given)
    twice = sorted({name for name in columns if columns.count(name) > 1}) if len(set(columns)) < len(columns) else []
    if twice:
        raise InputError("columns of different names", f"{list_of(twice)} more than once", "rename them", where)
    return columns


def _are_places(names: tuple[object, ...]) -> bool:
    """Return whether ``names`` are 0, 1, 2, ..., as of a frame that was given none."""
    return all(not isinstance(name, str) and name == i for i, name in enumerate(names))


def column_name(column: int, columns: Columns | None) -> str:
    """Return what messages call a column."""
    return f"column {column}" if columns is None else f"column {column} ({columns[column]!r})"


def list_of(names: Iterable[str]) -> str:
    """Return the first of ``names``, and how many more there are, for a message."""
    named = list(names)
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    return ", ".join(map(repr, named[:_NAMED])) + more


def in_order(x: Matrix, columns: Columns | None, wanted: Columns | None, where: str) -> Matrix:
    """Return ``x``, whose columns have the names ``columns``, with the columns ``wanted``, in that order.

    Where one of the two has no names, the columns are taken by position; with a warning where ``x`` lacks them.

    Raises
    ------
    InputError
        Names those that are missing or that nobody asked for.
    """
    if columns is not None and wanted is None and all(name.isdigit() for name in columns):
        wanted = tuple(map(str, range(x.shape[1])))  # these had no names: other numbers, or another order of them
    if wanted is None or columns == wanted:
        return x
    if columns is None:
        warnings.warn(
            f"{where}: the columns have no names, but the model was trained on {list_of(wanted)}; "
            "they are taken by position",
            stacklevel=2,
        )
        return x
    missing = [name for name in wanted if name not in set(columns)]
    additional = [name for name in columns if name not in set(wanted)]
    if missing or additional:
        parts = {"without": missing, "with": additional}
        given = " and ".join(f"{how} {list_of(names)}" for how, names in parts.items() if names)
        raise InputError(
            f"the {len(wanted)} columns of the training",
            f"a table {given}",
            "give the same columns, in any order",
            where,
        )
    place = {name: i for i, name in enumerate(columns)}
    order = np.array([place[name] for name in wanted])
    return x.in_order(order) if isinstance(x, SparseRows) else x[:, order]
