"""The oracle's fused multiply-add against exact fractions."""

from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from spectral_kernels.product import oracle

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(FLOATS, FLOATS, FLOATS)
@settings(max_examples=500)
def test_one_rounding(a: float, b: float, c: float) -> None:
    """Rounding to float64 first, which ties then hide from the rounding to float32."""
    found = oracle.fused(*(np.array([value], np.float32) for value in (a, b, c)))[0]
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if not np.isfinite(found):
        assert abs(exact) >= Fraction(2) ** 128 - Fraction(2) ** 103
        return
    # No neighbour is nearer, and of two that are equally near it is the even one.
    away = abs(Fraction(float(found)) - exact)
    for towards in (-np.inf, np.inf):
        with np.errstate(over="ignore"):
            other = np.nextafter(found, np.float32(towards))
        if np.isfinite(other):
            distance = abs(Fraction(float(other)) - exact)
            assert away <= distance
            assert away < distance or found.view(np.int32) % 2 == 0


def test_a_tie_that_two_roundings_break_the_wrong_way() -> None:
    """The case in which float64 arithmetic, rounded once more, is wrong by one bit."""
    a, b = np.float32(1 + 2.0**-12), np.float32(1 + 2.0**-12)
    c = np.float32(2.0**-60)
    found = oracle.fused(*(np.array([value]) for value in (a, b, c)))
    # a b is a tie between two float32 numbers; c, lost in float64, is above it.
    assert found[0] == np.float32(1 + 2.0**-11 + 2.0**-23)
    assert np.float32(np.float64(a) * np.float64(b) + np.float64(c)) != found[0]
