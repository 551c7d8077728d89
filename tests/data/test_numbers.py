"""Numbers that the network cannot hold are refused, by row and column; those that it can are not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distbp import InputError
from distbp.data import check_numbers, minmax, precarious, standard
from distbp.data.numbers import inexact

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


def check(value, dtype, exact=None, number=np.float64):
    x = np.zeros((5, 3), number)
    x[3, 1] = value
    check_numbers(x, np.array([4, 3, 0]), dtype, "table", exact=exact, columns=("a", "b", "c"))


@pytest.mark.parametrize(
    ("value", "dtype", "exact", "number", "message"),
    [
        (np.nan, FLOAT64, None, np.float64, "finite numbers; given nan"),
        (-np.inf, FLOAT32, None, np.float32, "finite numbers; given -inf"),
        (np.inf, FLOAT32, None, np.float16, "finite numbers; given inf"),
        (1e39, FLOAT32, None, np.float64, r"range of float32; given 1e\+39"),
        (-3.5e38, FLOAT32, None, np.float64, r"range of float32; given -3.5e\+38"),
        (
            2**24 + 1,
            FLOAT32,
            FLOAT32,
            np.int64,
            "float32 can hold; given 16777217 .*scaling: standard or dtype: float64",
        ),
        (-(2**24) - 1, FLOAT32, FLOAT32, np.int32, "float32 can hold; given -16777217"),
        (2**32 - 1, FLOAT32, FLOAT32, np.uint32, "float32 can hold; given 4294967295"),
        (2**53 + 1, FLOAT32, FLOAT64, np.int64, "float64 can hold; given 9007199254740993 .*subtract"),
        (2**64 - 1, FLOAT64, FLOAT64, np.uint64, "float64 can hold; given 18446744073709551615"),
    ],
)
def test_a_number_that_is_lost_is_named_by_row_and_column(value, dtype, exact, number, message):
    with pytest.raises(InputError, match=f"table: .*{message}.*") as caught:
        check(value, dtype, exact, number)
    assert "in row 3, column 1 ('b')" in caught.value.given


@pytest.mark.parametrize(
    ("value", "dtype", "exact", "number"),
    [
        (3.4e38, FLOAT32, None, np.float64),
        (1e308, FLOAT64, None, np.float64),
        (2**24, FLOAT32, FLOAT32, np.int64),
        (3 * 2**40, FLOAT32, FLOAT32, np.int64),
        (-(2**63), FLOAT32, FLOAT32, np.int64),
        (2**63, FLOAT32, FLOAT32, np.uint64),
        (2**24 + 1, FLOAT32, FLOAT64, np.int64),
        (2**24 + 1, FLOAT32, None, np.int64),  # a target
        (1, FLOAT32, FLOAT32, bool),
    ],
)
def test_a_number_that_can_be_held_is_taken(value, dtype, exact, number):
    check(value, dtype, exact, number)


@settings(deadline=None)
@given(st.integers(-(2**63), 2**63 - 1))
def test_an_integer_is_held_if_it_comes_back(value):
    with np.errstate(all="ignore"):
        comes_back = int(np.float32(value)) == value
    assert inexact(np.array([value]), 2**24)[0] == (not comes_back)


@pytest.mark.parametrize(
    ("low", "high", "narrow", "large"),
    [
        (1.7e9, 1.7e9 + 3600, True, True),  # seconds of an hour, since 1970
        (1.7e9, 1.8e9, False, True),
        (-5.0, 5.0, False, False),
        (3.0, 3.0, False, False),
        (1.0, 1.0 + 1e-15, False, False),  # the rounding errors of ones
        (1000.0, 1000.001, True, False),
        (1e20, 2e20, False, False),
    ],
)
def test_features_that_may_lose_their_content_are_found(low, high, narrow, large):
    found = precarious(np.array([low]), np.array([high]), FLOAT32)
    assert [bool(array[0]) for array in found] == [narrow, large]


@pytest.mark.parametrize("bounds", [(-1e308, 1e308), (0.0, 1e-310)])
def test_a_feature_too_wide_or_too_narrow_to_be_scaled_is_named(bounds):
    low, high = np.array([[0.0, bounds[0]], [1.0, bounds[1]]])
    with np.errstate(all="ignore"), pytest.raises(InputError, match="column 1, which is too wide or too narrow"):
        minmax(low, high)
    with np.errstate(all="ignore"), pytest.raises(InputError, match="column 1, which is too wide or too narrow"):
        standard(2, low + high, ((high - low) / 2) ** 2 * 2, low < high)
