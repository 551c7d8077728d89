"""Numbers that the network can take: of a numeric type, finite, and such that nothing is lost in its own type."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from distbp.data.columns import Columns, column_name
from distbp.data.sparse import Matrix, SparseRows, in_sequence
from distbp.errors import InputError

EXACT = 2**53
"""Up to it, float64 holds every integer."""

_BLOCK = 1 << 17  # entries looked at together: they stay in cache
_BLOCK_ROWS = 8192
_TEXT = "number them, as with np.unique(..., return_inverse=True), or make a column of 0 and 1 for each value"
REMEDIES = {
    "c": "give real and imaginary parts as columns of their own",
    "M": "turn dates into numbers, such as days since the first one",
    "m": "turn time spans into numbers, as with dividing by np.timedelta64(1, 's')",
    "V": "make one array of the fields, as with numpy.lib.recfunctions.structured_to_unstructured",
    "U": _TEXT,
    "S": _TEXT,
    "T": _TEXT,
}
"""What to do with an array that holds no numbers, by the kind of its type."""


def check_kind(dtype: np.dtype[Any], name: str, where: str) -> None:
    """Raise InputError where the type of the array that is called ``name`` is none of numbers."""
    if dtype.kind not in "biuf":
        remedy = REMEDIES.get(dtype.kind, "convert it to numbers")
        raise InputError(f"numbers in {name}", f"dtype {dtype}", remedy, where)


def check_numbers(
    x: Matrix,
    rows: np.ndarray,
    dtype: np.dtype[Any],
    where: str,
    *,
    exact: np.dtype[Any] | None = None,
    numbers: np.ndarray | None = None,
    columns: Columns | None = None,
    read: Callable[[Matrix], None] = lambda _: None,
) -> None:
    """Look at ``x[rows]``, which will be of ``dtype`` in the network.

    Parameters
    ----------
    exact:
        A type that must hold integers as they are; None if rounding does no harm.
    numbers:
        What messages call these rows, by default their place in the array.
    columns:
        The names of the columns.
    read:
        Is given the rows, block by block, as they are read: so nobody has to read them for something else.

    Raises
    ------
    InputError
        Names row and column of a number that is NaN, infinite or too large for ``dtype``, or an integer that ``exact``
        cannot hold.
    """
    n_block = max(1, min(_BLOCK_ROWS, _BLOCK // max(1, math.prod(x.shape[1:]))))
    for start in range(0, len(rows), n_block):
        block = rows[start : start + n_block]
        part = x.take(block) if isinstance(x, SparseRows) else np.asarray(x[in_sequence(block)]).reshape(len(block), -1)
        read(part)
        values = part.data if isinstance(part, SparseRows) else part
        for bad, expected, remedy in _faults(values, dtype, exact):
            if bad.any():
                entry = int(np.argmax(bad))
                position = part.position(entry) if isinstance(part, SparseRows) else divmod(entry, bad.shape[1])
                row, column = (rows if numbers is None else numbers)[start + position[0]], position[1]
                given = f"{values.flat[entry]} in row {row}, {column_name(column, columns)}"
                raise InputError(expected, given, remedy, where)


def _faults(
    values: np.ndarray, dtype: np.dtype[Any], exact: np.dtype[Any] | None
) -> Iterator[tuple[np.ndarray, str, str]]:
    """Yield which of ``values`` cannot be taken, what is expected instead, and what to do."""
    if values.dtype.kind == "f":
        largest = np.finfo(min(dtype, values.dtype)).max
        with np.errstate(invalid="ignore"):
            if values.size == 0 or (values.min() >= -largest and values.max() <= largest):  # neither, if one is NaN
                return
        fitting = np.abs(values) <= largest
        yield ~np.isfinite(values), "finite numbers", "clean the data, for example by leaving that row out"
        yield ~fitting, f"numbers in the range of {dtype}", "scale them down beforehand, or set dtype: float64"
    elif values.dtype.kind in "iu" and exact is not None:
        limit = 2 ** (np.finfo(exact).nmant + 1)
        if values.dtype.itemsize > 2 and np.iinfo(values.dtype).max > limit:
            ways = "set scaling: standard or dtype: float64, or " if exact.itemsize < 8 else ""
            remedy = f"{ways}subtract a number near them beforehand; if they are names, not amounts, leave them out"
            yield inexact(values, limit), f"integers that {exact} can hold", remedy


def inexact(values: np.ndarray, limit: int) -> np.ndarray:
    """Return which integers have more binary digits, from the first to the last that is not 0, than ``limit`` has."""
    bad = (values > limit) | (values < -limit if values.dtype.kind == "i" else False)
    if bad.any():
        size = np.abs(values[bad]).astype(np.uint64)
        last_digit = size & (~size + np.uint64(1))
        bad[bad] = size // last_digit >= limit
    return bad


def precarious(low: np.ndarray, high: np.ndarray, dtype: np.dtype[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return which features between ``low`` and ``high`` may lose their content when they are rounded to ``dtype``.

    Returns
    -------
    narrow:
        Those that have less than a hundred numbers of ``dtype`` to tell their values apart, though these differ by more
        than the rounding errors of a computation in float64.
    large:
        Those beyond the integers that ``dtype`` holds, but not beyond those that float64 does.
    """
    with np.errstate(all="ignore"):  # what is not finite is told elsewhere
        size, width = np.maximum(np.abs(low), np.abs(high)), high - low
        narrow = (width < 100 * np.spacing(size.astype(dtype))) & (width > size * 2.0**-40)
    return narrow, (size > 2 ** (np.finfo(dtype).nmant + 1)) & (size < EXACT)
