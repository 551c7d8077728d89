"""What users pass as features and targets: what is taken, and what is refused with a message that names the place."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from distbp import InputError
from distbp.data import Rows, SparseRows, as_features, as_rows, in_order

X = np.arange(12.0).reshape(4, 3) / 8
FRAME = pd.DataFrame(X, columns=["age", "size", "income"])
MASKED = np.ma.array(X, mask=np.zeros_like(X, bool))
HIDDEN = np.ma.array(X, mask=np.eye(4, 3, -1, bool))  # row 1, column 0 is the first that is masked


@pytest.mark.parametrize(
    "x",
    [
        X.tolist(),
        tuple(X),
        X.view(np.matrix),
        np.asfortranarray(X),
        X.astype(">f8"),
        X.astype(np.longdouble),
        X.astype(np.float16),
        X.astype(object),
        [[Decimal("0"), Fraction(1, 8), 0.25], *X[1:].tolist()],
        MASKED,
        list(MASKED),
        FRAME,
        FRAME.astype("Float64"),
        FRAME.astype("float32"),
        FRAME.astype(object),
        FRAME.astype("Sparse[float64]"),
        FRAME.astype(pd.SparseDtype(float, 0.0)),
        sp.csr_matrix(X),
        sp.coo_array(X),
        sp.csc_matrix(X),
    ],
    ids=lambda x: type(x).__name__,
)
def test_numbers_are_taken_whatever_holds_them(x):
    taken, _ = as_features(x)
    np.testing.assert_array_equal(taken[:], X)
    assert taken.dtype.kind == "f"


@pytest.mark.parametrize(
    "columns",
    [
        {"a": pd.array([1, 2, 3], "Int64"), "b": pd.array([True, False, True], "boolean"), "c": [0.5, 1.5, 2.5]},
        {"a": [1, 2, 3], "b": [True, False, True], "c": np.float32([0.5, 1.5, 2.5])},
        {"a": pd.Series([1, 2, 3], dtype=object), "b": pd.array([1, 0, 1], "UInt8"), "c": [0.5, 1.5, 2.5]},
    ],
)
def test_columns_of_several_types_become_one_array(columns):
    taken, names = as_features(pd.DataFrame(columns))
    np.testing.assert_array_equal(taken, [[1, 1, 0.5], [2, 0, 1.5], [3, 1, 2.5]])
    assert names == ("a", "b", "c")


def test_a_memory_map_stays_one(tmp_path):
    np.save(tmp_path / "x.npy", X)
    assert isinstance(as_features(np.load(tmp_path / "x.npy", mmap_mode="r"))[0], np.memmap)


WORDS = ["x", "y", "x", "y"]
DAYS = pd.date_range("2026-01-01", periods=4)
REFUSED = {
    "masked": (HIDDEN, "a masked value in row 1, column 0"),
    "rows that are masked": (list(HIDDEN), "a masked value in row 1, column 0"),
    "None": ([[1.0, 2.0], [3.0, None]], "a missing value in row 1, column 1"),
    "NA among objects": (np.array([[1, pd.NA]], object), "a missing value in row 0, column 1"),
    "NA among integers": (FRAME.assign(size=pd.array([1, 2, None, 4], "Int64")), r"'size'\) of x.* in row 2"),
    "NA among booleans": (FRAME.assign(size=pd.array([None, True, True, True], "boolean")), r"'size'\).* in row 0"),
    "NA among numbers": (FRAME.astype("Float64").mask(FRAME > 1.3), r"'income'\) of x.* a missing value in row 3"),
    "categories": (FRAME.assign(age=pd.Categorical(WORDS)), r"column 0 \('age'\).* categories; .*get_dummies"),
    "numbered categories": (FRAME.assign(age=pd.Categorical([1, 2, 1, 2])), r"categories; .*astype\(float\)"),
    "words": (FRAME.assign(age=WORDS), r"column 0 \('age'\) of x; given 'x' \(str\) in row 0"),
    "words as objects": (FRAME.assign(age=[1, "2", 3, 4]), r"'age'\) of x; given '2' \(str\) in row 1"),
    "strings": (X.astype(str), "dtype <U.*np.unique"),
    "bytes": (X.astype("S"), "dtype .S"),
    "dates": (X.astype("datetime64[D]"), "turn dates into numbers"),
    "a column of dates": (FRAME.assign(age=DAYS), r"column 0 \('age'\) of x; given dtype datetime64.*turn dates"),
    "dates of a zone": (
        FRAME.assign(age=DAYS.tz_localize("UTC")),
        r"\('age'\) of x; given dtype datetime64.*turn dates",
    ),
    "periods": (FRAME.assign(age=DAYS.to_period()), r"column 0 \('age'\) of x; given Period.* in row 0"),
    "time spans": (FRAME.assign(age=DAYS - DAYS[0]), "turn time spans into numbers"),
    "complex": (X + 1j, "real and imaginary parts"),
    "complex and sparse": (sp.csr_matrix(X + 1j), "real and imaginary parts"),
    "complex among objects": (np.array([[1, 2j]], object), r"2j \(complex\) in row 0, column 1"),
    "fields": (np.zeros(3, [("a", float), ("b", int)]), "structured_to_unstructured"),
    "two of one name": (pd.DataFrame(X, columns=["a", "b", "a"]), "'a' more than once; rename"),
    "ragged": ([[1, 2, 3], [4, 5, 6], [7, 8]], "2 in row 2 after 3 in row 0"),
    "a number among rows": ([[1, 2, 3], 4], "in row 1 after 3 in row 0"),
    "arrays as objects": (np.array([np.zeros(2), None], object)[:1, None], "ndarray.* in row 0, column 0"),
    "sparse rows in a list": ([sp.csr_matrix(X)], r"\(csr_matrix\) in row 0"),
    "a large integer beside a fraction": ([[2**60 + 1, 0.5]], "integers that float64 can hold.*1152921504606846977"),
    "a large integer in a column": (FRAME.assign(age=2**53 + 1), r"float64 can hold in column 0 \('age'\).* in row 0"),
    "an endless integer": ([[10**400, 1]], "more than 308 digits"),
    "one dimension": (X[0], r"given shape \(3,\).*x\[None, :\] one row"),
    "a series": (FRAME["age"], r"given shape \(4,\)"),
    "one dimension and sparse": (sp.coo_array(X[0]), r"given shape \(3,\)"),
    "no columns": (FRAME[[]], "at least one column"),
    "nothing": ([], r"shape \(0,\)"),
    "None at all": (None, "an array of numbers in x; given a NoneType"),
    "a number": (3.5, "given a float"),
    "a dictionary": ({"a": [1]}, "given a dict"),
    "a generator": ((row for row in X), "given a generator"),
}


@pytest.mark.parametrize(("x", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_table_of_numbers_is_refused_by_name_and_place(x, message):
    with pytest.raises(InputError, match=message):
        as_features(x)


def test_what_cannot_become_an_array_says_why():
    class Stubborn:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("detach it first\nand more")

    with pytest.raises(InputError, match=r"a Stubborn that is none \(detach it first\)"):
        as_features(Stubborn())


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (["a", "b", "a", "b"], "numbers in y.*np.unique"),
        (pd.Series(["a", "b", "a", "b"]), "numbers in y.*np.unique"),
        (pd.Series(["a", "b", "a", "b"], dtype="category"), "y.cat.codes"),
        (pd.Series([1, 0, None, 1], dtype="Int64"), "number in every row of y; given a missing value in row 2"),
        (np.ma.array([0, 1, 0, 1], mask=[0, 0, 0, 1]), "a masked value in row 3"),
        (None, "an array of numbers in y; given a NoneType"),
        ([0, 1, 0], "as many rows of features as of targets; given 4 and 3"),
        (np.zeros((4, 1, 1)), r"targets of shape \(rows,\) or \(rows, k\)"),
        (np.zeros(4, complex), "numbers in y"),
    ],
)
def test_targets_that_are_none_are_refused(y, message):
    with pytest.raises(InputError, match=message):
        as_rows(X, y)


@pytest.mark.parametrize(
    ("y", "shape"),
    [
        (pd.Series([1, 0, 1, 0], dtype="Int64"), (4,)),
        (pd.Series([1, 0, 1, 0], dtype="category"), (4,)),
        (pd.DataFrame({"t": [1, 0, 1, 0]}), (4, 1)),
        (sp.csr_matrix(np.eye(2)[[1, 0, 1, 0]]), (4, 2)),
        (np.array([[1], [0], [1], [0]]).view(np.matrix), (4, 1)),
        ([True, False, True, False], (4,)),
    ],
)
def test_targets_are_taken_whatever_holds_them(y, shape):
    taken = as_rows(X, y).y
    assert taken.shape == shape
    assert type(taken) is np.ndarray
    np.testing.assert_array_equal(taken[:, -1] if shape == (4, 2) else taken.ravel(), [1, 0, 1, 0])


def test_targets_whose_labels_stand_in_another_order_are_refused():
    """pandas would put them together by label; here rows go by position."""
    y = pd.Series([0, 1, 0, 1])
    with pytest.raises(InputError, match=r"the same labels in another order; .*y.loc\[x.index\]"):
        as_rows(FRAME.iloc[::-1], y)
    as_rows(FRAME.iloc[::-1], y.loc[FRAME.index[::-1]])
    as_rows(FRAME.iloc[::-1], y.to_numpy())
    as_rows(FRAME, y.set_axis([7, 8, 9, 10]))  # labels of their own say nothing


def test_columns_that_are_but_numbered_have_no_names():
    assert as_features(pd.DataFrame(X))[1] is None


@pytest.mark.parametrize("columns", [[10, 20, 30], ["a", "b", 3], pd.MultiIndex.from_product([["a"], [1, 2, 3]])])
def test_columns_whose_names_are_no_strings_are_put_in_order_as_well(columns):
    frame = pd.DataFrame(X, columns=columns)
    names = as_features(frame)[1]
    other, theirs = as_features(frame[frame.columns[::-1]])
    np.testing.assert_array_equal(in_order(other, theirs, names, "x"), X)


def test_numbered_columns_in_another_order_are_put_in_order():
    other, theirs = as_features(pd.DataFrame(X)[[2, 0, 1]])
    np.testing.assert_array_equal(in_order(other, theirs, None, "x"), X)


def test_a_table_of_another_library_keeps_the_names_of_its_columns():
    class Table:
        """As Polars and Arrow have them."""

        columns = ("a", "b", "c")

        def __array__(self, dtype=None, copy=None):
            return X

    taken, names = as_features(Table())
    np.testing.assert_array_equal(taken, X)
    assert names == ("a", "b", "c")


def test_sparse_rows_are_read_as_the_dense_ones_would_be():
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((30, 7)) * (rng.random((30, 7)) < 0.2)
    rows = SparseRows.of(sp.csr_matrix(dense))
    order, places = rng.permutation(7), rng.integers(0, 30, 50)
    np.testing.assert_array_equal(rows[:], dense)
    np.testing.assert_array_equal(rows[3:9], dense[3:9])
    np.testing.assert_array_equal(rows[places], dense[places])
    np.testing.assert_array_equal(rows[places[:0]], dense[:0])
    np.testing.assert_array_equal(rows.take(places)[:], dense[places])
    np.testing.assert_array_equal(rows.in_order(order)[:], dense[:, order])
    assert (len(rows), rows.shape, rows.ndim) == (30, (30, 7), 2)


def test_entries_of_a_sparse_matrix_that_are_stored_twice_are_added():
    twice = sp.csr_matrix(([1.0, 2.0, 5.0], [1, 1, 0], [0, 2, 3]), shape=(2, 3))
    np.testing.assert_array_equal(SparseRows.of(twice)[:], [[0, 3, 0], [5, 0, 0]])
    assert twice.nnz == 3  # that of the user is as it was


def test_columns_of_rows_are_put_in_order():
    rows = as_rows(FRAME, np.zeros(4))
    ordered = rows.in_order(("income", "age", "size"), None)
    np.testing.assert_array_equal(ordered.x, X[:, [2, 0, 1]])
    assert ordered.columns == ("income", "age", "size")
    assert rows.in_order(None, None).columns == rows.columns


def test_columns_that_are_missing_or_that_nobody_asked_for_are_named():
    rows = as_rows(FRAME, np.zeros(4))
    with pytest.raises(
        InputError, match="the 3 columns of the training; given a table without 'height' and with 'age'"
    ):
        rows.in_order(("size", "income", "height"), None)
    wanted = tuple(f"c{i}" for i in range(9))
    with pytest.raises(
        InputError, match="without 'c0', 'c1', 'c2', 'c3', 'c4' and 4 more and with 'age', 'size', 'inc"
    ):
        rows.in_order(wanted, None)


def test_columns_without_names_are_taken_by_position_with_a_warning():
    with pytest.warns(UserWarning, match="trained on 'a', 'b', 'c'; they are taken by position"):
        ordered = Rows(X, np.zeros(4)).in_order(("a", "b", "c"), None)
    np.testing.assert_array_equal(ordered.x, X)
