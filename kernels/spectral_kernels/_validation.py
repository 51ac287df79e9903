"""Checks of arguments; every message names the argument, what was expected, what came."""

import math
import operator
from typing import Any, TypeGuard

import numpy as np


def is_number(value: Any) -> TypeGuard[float]:
    """Whether this is a real number, of Python or NumPy; a truth value is none."""
    numbers = int | float | np.integer | np.floating
    return isinstance(value, numbers) and not isinstance(value, bool)


def positive_integer(value: int, name: str, at_most: int | None = None, meaning: str = "") -> int:
    """`value` as an int in [1, at_most]; `meaning` says in the message what `at_most` is."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: expected an integer; got {value!r}")
    number = operator.index(value)
    if number < 1 or (at_most is not None and number > at_most):
        bound = "1 or more" if at_most is None else f"1 to {meaning} = {at_most}"
        raise ValueError(f"{name}: expected {bound}; got {number}")
    return number


def require_tolerance(value: float) -> float:
    """`value` as a float, 0 or more and finite."""
    if not is_number(value):
        raise TypeError(f"tolerance: expected a number; got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"tolerance: expected a finite number, 0 or more; got {value!r:.60}")
    return number


def word(value: int, name: str, bits: int) -> int:
    """`value` as an int in [0, 2^bits)."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: expected an integer; got {type(value).__name__}")
    number = operator.index(value)
    if not 0 <= number < 1 << bits:
        raise ValueError(f"{name}: expected an integer in [0, 2^{bits}); got {number}")
    return number


def require_seed(seed: int, stream: int) -> None:
    """Seed a 64-bit word, stream a 32-bit word."""
    word(seed, "seed", 64)
    word(stream, "stream", 32)


def require_plain(array: Any, argument: str) -> None:
    """Refuse arrays whose memory does not hold their entries one by one in this machine's order.

    Raises:
        TypeError: names the kind of array, and the way out.
    """
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(
            f"{argument}: expected a plain array; got a masked array, of which the mask would be "
            "ignored: give array.filled(0), or array.data"
        )
    if isinstance(array, np.ndarray):
        if not array.dtype.isnative:
            raise TypeError(
                f"{argument}: expected dtype of this machine's byte order; got {array.dtype}: "
                "give array.astype(array.dtype.newbyteorder('='))"
            )
        return
    if getattr(array, "is_nested", False):
        raise TypeError(
            f"{argument}: expected a dense tensor; got a nested tensor: give its matrices one by "
            "one (tensor.unbind()), or tensor.to_padded_tensor(0)"
        )
    if str(getattr(array, "layout", "torch.strided")) != "torch.strided":
        raise TypeError(
            f"{argument}: expected a dense tensor; got layout {array.layout}: "
            "give tensor.to_dense()"
        )
    if hasattr(type(array), "__tensor_flatten__"):
        raise TypeError(
            f"{argument}: expected a plain tensor; got a {type(array).__name__}, which holds its "
            "entries in other tensors: give what it makes of itself as one dense tensor"
        )
