"""Checks of scalar arguments."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spectral_engine._util.checks import boolean, integer, number, one_of


@given(st.integers(-(2**31), 2**31 - 1))
def test_numpys_integers_come_back_as_pythons(value):
    """A NumPy integer that is refused, or kept as it is and breaks JSON later."""
    for given_value in (value, np.int32(value), np.int64(value)):
        found = integer("rank", given_value)
        assert type(found) is int
        assert found == value


@given(st.floats(-1e6, 1e6, width=32))
def test_numpys_floats_come_back_as_pythons(value):
    """A NumPy float32 that is refused, or kept as it is and rounds what is computed with it."""
    for given_value in (value, np.float32(value), np.float64(value)):
        found = number("tolerance", given_value)
        assert type(found) is float
        assert found == value


def test_truth_values():
    """np.True_ refused, or 1 taken for True."""
    assert boolean("masks", np.True_) is True
    assert boolean("masks", False) is False


@given(st.integers(-20, 20), st.integers(-5, 5), st.integers(0, 5))
def test_bounds_of_integers_belong_to_the_range(value, least, width):
    """A bound that is off by one."""
    if least <= value <= least + width:
        assert integer("n", value, least=least, most=least + width) == value
    else:
        with pytest.raises(ValueError, match=f"n: expected {least} to {least + width}; got"):
            integer("n", value, least=least, most=least + width)


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "said"),
    [
        ({"least": 0, "below": 1}, (0, 0.5), (-1e-9, 1), "in [0, 1)"),
        ({"above": 0, "most": 1}, (1e-9, 1), (0, 1.1), "in (0, 1]"),
        ({"above": 0}, (1e-300, 1e300), (0, -1), "above 0"),
        ({"least": 0}, (0, 3), (-1,), "of at least 0"),
        ({"most": 2}, (2, -3), (2.1,), "of at most 2"),
        ({"below": 2}, (1.9,), (2,), "below 2"),
    ],
)
def test_bounds_of_numbers(bounds, inside, outside, said):
    """A bound that is off, or that the message states as another one; NaN let through."""
    for value in inside:
        assert number("x", value, **bounds) == value
    for value in (*outside, float("nan"), float("inf"), 10**400):
        with pytest.raises(ValueError, match=re.escape(f"x: expected a number {said}; got")):
            number("x", value, **bounds)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: integer("n", True), TypeError, "n: expected an integer; got bool True"),
        (lambda: integer("n", 2.0), TypeError, "n: expected an integer; got float 2.0"),
        (lambda: integer("n", "2"), TypeError, "n: expected an integer; got str '2'"),
        (lambda: integer("n", None), TypeError, "n: expected an integer; got None"),
        (lambda: integer("n", torch.tensor(2)), TypeError, "n: expected an integer; got Tensor"),
        (lambda: integer("n", np.array(2)), TypeError, "n: expected an integer; got ndarray"),
        (lambda: integer("n", 0, least=1), ValueError, "n: expected at least 1; got 0"),
        (lambda: integer("n", 9, most=1), ValueError, "n: expected at most 1; got 9"),
        (lambda: number("x", np.True_), TypeError, "x: expected a number; got"),
        (lambda: number("x", 1j), TypeError, "x: expected a number; got complex 1j"),
        (lambda: number("x", [1.0]), TypeError, "x: expected a number; got list"),
        (lambda: number("x", "a" * 99), TypeError, "x: expected a number; got str"),
        (
            lambda: number("x", 2, least=0, most=1, meaning="a share"),
            ValueError,
            r"x: expected a share in \[0, 1\]; got 2",
        ),
        (lambda: number("x", np.float32(np.inf)), ValueError, "x: expected a number that is fin"),
        (lambda: boolean("b", 1), TypeError, "b: expected True or False; got 1"),
        (lambda: boolean("b", {}), TypeError, "b: expected True or False; got dict"),
        (lambda: one_of("c", "z", ("x", "y")), ValueError, "c: expected one of x, y; got 'z'"),
        (lambda: one_of("c", ["x"], ("x", "y")), ValueError, "c: expected one of x, y; got list"),
    ],
)
def test_messages_name_the_argument_and_what_came(call, error, message):
    """A raw error of Python or torch, or junk taken for a number."""
    with pytest.raises(error, match=message):
        call()
