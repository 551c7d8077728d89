"""What users pass as features and targets, turned into arrays: the one place where it is looked at.

Taken are arrays, masked arrays without masked values, matrices, lists, sparse matrices of SciPy, data frames and
series, and whatever else NumPy takes as an array. Other libraries are recognised by their attributes, never imported.
"""

from __future__ import annotations

import warnings
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np

from distbp.data.columns import Columns, column_name, columns_of
from distbp.data.dataset import Rows, check_features
from distbp.data.numbers import EXACT, REMEDIES, check_kind, inexact
from distbp.data.sparse import Matrix, SparseRows
from distbp.errors import InputError

_FILL = "fill it in, or leave that row out"
_CONVERT = "convert it to numbers"


def as_rows(x: Any, y: Any, where: str = "arrays") -> Rows:
    """Return the features ``x`` and the targets ``y``, as users pass them, as rows.

    Raises
    ------
    InputError
        Where they are no numbers, or do not belong together.
    """
    features, columns = as_features(x, where)
    targets = _array(y.toarray() if _is_sparse(y) else y, "y", where)
    _check_order(x, y, where)
    names = _names(y)
    several = None if names is None or len(names) < 2 else columns_of(names, f"{where}, targets")
    return Rows(features, targets, where, columns=columns, targets=several)


def as_features(x: Any, where: str = "arrays") -> tuple[Matrix, Columns | None]:
    """Return the features ``x``, as users pass them, as an array (n, ...), and the names of its columns if it has any.

    Raises
    ------
    InputError
        Where they are no numbers, or have another shape.
    """
    names = _names(x)
    columns = None if names is None else columns_of(names, where)
    if names and hasattr(x, "sparse") and all(dtype.fill_value == 0 for dtype in x.dtypes):
        x = x.sparse.to_coo()
    if _is_sparse(x) and len(x.shape) == 2:
        check_kind(np.dtype(x.dtype), "x", where)
        features: Matrix = SparseRows.of(x)
    else:
        features = _array(x.toarray() if _is_sparse(x) else x, "x", where)
    check_features(features, where)
    return features, columns


def _is_sparse(given: Any) -> bool:
    """Return whether ``given`` is a sparse matrix or array of SciPy."""
    return hasattr(given, "tocsr") and hasattr(given, "nnz")


def _names(given: Any) -> list[Any] | None:
    """Return the names of the columns of a data frame (pandas, Polars) or a table (Arrow); None for all others."""
    if isinstance(given, np.ndarray) or not (hasattr(given, "to_numpy") or hasattr(given, "__array__")):
        return None
    names = getattr(given, "column_names", getattr(given, "columns", None))
    return None if names is None else list(names)


def _array(given: Any, name: str, where: str) -> np.ndarray:
    """Return what is called ``name`` as an array of numbers; a memory map as it is."""
    if hasattr(given, "iloc"):  # of pandas
        return _series(given, name, where) if hasattr(given, "dtype") else _frame(given, name, where)
    if isinstance(given, (list, tuple)):
        given = _of_list(given, name, where)
    if isinstance(given, np.ma.MaskedArray):
        masked = np.ma.getmaskarray(given)
        if masked.any():
            at = _position(np.argwhere(masked)[0])
            raise InputError(f"a number at every place of {name}", f"a masked value in {at}", _FILL, where)
        given = np.ma.getdata(given)
    try:
        array = given if isinstance(given, np.memmap) else np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:  # as of a tensor that wants a gradient
        given = f"a {type(given).__name__} that is none ({str(error).splitlines()[0]})"
        raise InputError(f"an array of numbers in {name}", given, _CONVERT, where) from None
    if array.ndim == 0:
        remedy = "give an array, a list or a data frame"
        raise InputError(f"an array of numbers in {name}", f"a {type(given).__name__}", remedy, where)
    if array.dtype.kind == "O":
        array = _of_objects(array, name, where)
    elif array.dtype.kind == "f" and array.dtype.itemsize > 8:  # long double
        with np.errstate(over="ignore"):  # what becomes infinite is refused as that
            array = array.astype(np.float64)
    check_kind(array.dtype, name, where)
    return array


def _of_list(given: list[Any] | tuple[Any, ...], name: str, where: str) -> np.ndarray:
    if any(isinstance(row, np.ma.MaskedArray) for row in given):  # np.asarray would uncover what is masked
        return np.ma.asarray(given)
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # a masked number becomes NaN
            array = np.asarray(given)
        if array.dtype.kind == "f" and np.any(np.abs(array) > EXACT):  # there may have been integers among them
            return np.asarray(given, object)
        return array
    except ValueError as error:
        sizes = [len(row) if hasattr(row, "__len__") else None for row in given if not isinstance(row, str)]
        odd = next((i for i, size in enumerate(sizes) if size != sizes[0]), None)
        said = str(error) if odd is None else f"{sizes[odd] or 'no list of'} in row {odd} after {sizes[0]} in row 0"
        raise InputError(f"as many numbers in every row of {name}", said, "make all rows equally long", where) from None


def _frame(frame: Any, name: str, where: str) -> np.ndarray:
    """Return a data frame of pandas as an array (n, n_columns) of a type that holds the numbers of all columns."""
    dtypes = set(frame.dtypes)
    if len(dtypes) == 1 and isinstance(dtype := dtypes.pop(), np.dtype) and dtype.kind in "biuf":
        return np.asarray(frame)
    if frame.shape[1] == 0:
        return np.zeros(frame.shape)
    columns = columns_of(frame.columns, where)
    titles = [f"{column_name(i, columns)} of {name}" for i in range(frame.shape[1])]
    parts = [_series(frame.iloc[:, i], title, where) for i, title in enumerate(titles)]
    array = np.stack(parts, axis=1)
    if array.dtype.kind == "f":
        for part, title in zip(parts, titles, strict=True):
            if part.dtype.kind in "iu" and (bad := inexact(part, EXACT)).any():
                at = int(np.argmax(bad))
                given, remedy = f"{part[at]} in row {at}", "subtract a number near them beforehand"
                raise InputError(f"integers that float64 can hold in {title}", given, remedy, where)
    return array


def _series(series: Any, name: str, where: str) -> np.ndarray:
    """Return a series of pandas as an array (n,)."""
    dtype = series.dtype
    if isinstance(dtype, np.dtype):
        return _array(series.to_numpy(), name, where)
    missing = np.asarray(series.isna(), bool)
    if missing.any():
        at = int(np.argmax(missing))
        raise InputError(f"a number in every row of {name}", f"a missing value in row {at}", _FILL, where)
    if str(dtype) == "category":
        if name != "y" or series.cat.categories.dtype.kind not in "biuf":
            codes = "y.cat.codes" if name == "y" else "pandas.get_dummies, or .astype(float) if they are amounts"
            raise InputError(f"numbers in {name}", "categories", f"make numbers of them, as with {codes}", where)
        series = series.astype(series.cat.categories.dtype)
    elif dtype.kind in "Mmc":
        check_kind(dtype, name, where)
    return _array(series.to_numpy(), name, where)


def _of_objects(array: np.ndarray, name: str, where: str) -> np.ndarray:
    """Return an array of Python's numbers as one of NumPy's."""
    values = array.ravel().tolist()
    for i, value in enumerate(values):
        if isinstance(value, (Real, Decimal, np.bool_)):
            continue
        at = _position(np.unravel_index(i, array.shape))
        if value is None or type(value).__name__ in ("NAType", "NaTType"):
            raise InputError(f"a number at every place of {name}", f"a missing value in {at}", _FILL, where)
        given = f"{value!r:.40} ({type(value).__name__}) in {at}"
        raise InputError(f"numbers in {name}", given, REMEDIES["U"] if isinstance(value, str) else _CONVERT, where)
    found = np.array(values)
    if found.dtype.kind not in "biuf":  # large integers, decimal numbers, fractions
        try:
            found = np.array(values, np.float64)
        except OverflowError:
            given = "an integer of more than 308 digits"
            raise InputError(f"numbers that float64 can hold in {name}", given, "scale them down", where) from None
    if found.dtype.kind == "f":
        for i, value in enumerate(values):
            if isinstance(value, int) and int(found[i]) != value:
                at = _position(np.unravel_index(i, array.shape))
                remedy = "subtract a number near them beforehand"
                raise InputError(f"integers that float64 can hold in {name}", f"{value} in {at}", remedy, where)
    return found.reshape(array.shape)


def _position(index: Any) -> str:
    """Return what messages call the place of ``index`` in an array."""
    row, *rest = (int(i) for i in index)
    return f"row {row}, column {', '.join(map(str, rest))}" if rest else f"row {row}"


def _check_order(x: Any, y: Any, where: str) -> None:
    """Raise InputError where x and y of pandas carry the same labels in another order: rows are taken by position."""
    if not (hasattr(x, "iloc") and hasattr(y, "iloc")) or x.index.equals(y.index):
        return
    if len(x) == len(y) and x.index.isin(y.index).all() and y.index.isin(x.index).all():
        remedy = "put them in order with y.loc[x.index], or pass y.to_numpy() if they belong together by position"
        raise InputError("x and y with their rows in one order", "the same labels in another order", remedy, where)
