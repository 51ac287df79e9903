"""Checks of scalar arguments; every message names the argument, what was expected, what came."""

import math
import operator

from spectral_kernels.stream import WORD_MASK


def positive_integer(value: int, name: str, at_most: int | None = None, meaning: str = "") -> int:
    """`value` as an int in [1, at_most]; `meaning` says in the message what `at_most` is."""
    if isinstance(value, bool):
        raise TypeError(f"{name}: expected an integer; got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer; got {value!r}") from None
    if number < 1 or (at_most is not None and number > at_most):
        bound = "1 or more" if at_most is None else f"1 to {meaning} = {at_most}"
        raise ValueError(f"{name}: expected {bound}; got {number}")
    return number


def require_tolerance(value: float) -> float:
    """`value` as a float, 0 or more and finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"tolerance: expected a number; got {value!r}")
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"tolerance: expected a finite number, 0 or more; got {value!r}")
    return float(value)


def require_seed(seed: int, stream: int) -> None:
    """Seed a 64-bit word, stream a 32-bit word."""
    for name, value, top in (("seed", seed, 2**64 - 1), ("stream", stream, WORD_MASK)):
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise TypeError(f"{name}: expected an integer; got {value!r}")
        if not 0 <= operator.index(value) <= top:
            raise ValueError(f"{name}: expected an integer in [0, {top}]; got {value}")
