"""Checks of numbers, truth values and choices: an error names the argument and what was expected.

NumPy's scalars pass as Python's do, and all come back as Python's, so that they print and are
saved alike. A truth value is no number, and an array of one entry is no scalar.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

#: Of values of these types a message shows the value too; of others it shows the type alone.
_PLAIN = (bool, int, float, complex, str, np.generic)
#: The longest value that a message shows.
_SHOWN = 60


def boolean(name: str, value: Any) -> bool:
    """The truth value.

    Args:
        name: of the argument, for the message.
        value: True or False, of Python or NumPy.

    Returns:
        It, as Python's.

    Raises:
        TypeError: anything else.
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: expected True or False; got {shown(value)}")
    return bool(value)


def integer(name: str, value: Any, *, least: int | None = None, most: int | None = None) -> int:
    """The integer, between two bounds that belong to it.

    Args:
        name: of the argument, for the message.
        value: an integer of Python or NumPy.
        least, most: the bounds; None for none.

    Returns:
        It, as Python's.

    Raises:
        TypeError: no integer; 2.0 is none, and neither is True.
        ValueError: out of bounds.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: expected an integer; got {_typed(value)}")
    number = int(value)
    if (least is not None and number < least) or (most is not None and number > most):
        if most is None:
            bounds = f"at least {least}"
        elif least is None:
            bounds = f"at most {most}"
        else:
            bounds = f"{least} to {most}"
        raise ValueError(f"{name}: expected {bounds}; got {number}")
    return number


def number(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    meaning: str = "a number",
) -> float:
    """The finite number, between two bounds.

    Args:
        name: of the argument, for the message.
        value: an integer or floating-point number of Python or NumPy.
        least, most: bounds that belong to what is allowed; None for none.
        above, below: bounds that do not belong to it; None for none.
        meaning: what the number is, for the message: "a share", "the fraction of zeros,".

    Returns:
        It, as Python's float.

    Raises:
        TypeError: no number; True is none.
        ValueError: out of bounds, NaN or infinite.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name}: expected a number; got {_typed(value)}")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    inside = (
        math.isfinite(found)
        and (least is None or found >= least)
        and (above is None or found > above)
        and (most is None or found <= most)
        and (below is None or found < below)
    )
    if not inside:
        bounds = _interval(least, above, most, below)
        raise ValueError(f"{name}: expected {meaning}{bounds}; got {shown(value)}")
    return found


def one_of(name: str, value: Any, choices: Iterable[str]) -> str:
    """The string, one of several.

    Args:
        name: of the argument, for the message.
        value: a string.
        choices: those that are allowed, in the order in which the message lists them.

    Returns:
        It.

    Raises:
        ValueError: none of them, or no string.
    """
    allowed = list(choices)
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(allowed)}; got {shown(value)}")
    return value


def file_path(name: str, value: Any) -> Path:
    """The path of a file or folder, which need not exist.

    Args:
        name: of the argument, for the message.
        value: a string, or an object that stands for one (`os.PathLike`).

    Returns:
        It, as a Path.

    Raises:
        TypeError: anything else, bytes too.
        ValueError: a string that no file system takes.
    """
    try:
        found = Path(value)
    except TypeError as error:
        raise TypeError(f"{name}: expected a path; got {_typed(value)}") from error
    if "\0" in str(found):
        raise ValueError(f"{name}: expected a path; got one with a null byte")
    return found


def saved_state(state: Any, kind: str) -> Mapping[str, Any]:
    """A state dictionary that says of which kind it is, under "format".

    Args:
        state: what a user gives to `load_state_dict`, perhaps damaged.
        kind: what it must say.

    Returns:
        It.

    Raises:
        TypeError: no dictionary.
        ValueError: of another kind.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"state: expected a dictionary; got {shown(state)}")
    found = state.get("format")
    if not isinstance(found, str) or found != kind:
        raise ValueError(f"state: expected format {kind!r}; got {shown(found)}")
    return state


def _interval(
    least: float | None, above: float | None, most: float | None, below: float | None
) -> str:
    """The bounds in words, with a space before them; of no bounds, that it must be finite."""
    low, high = least if above is None else above, most if below is None else below
    if low is not None and high is not None:
        opening, closing = "[" if above is None else "(", "]" if below is None else ")"
        return f" in {opening}{low:g}, {high:g}{closing}"
    if low is not None:
        return f" of at least {low:g}" if above is None else f" above {low:g}"
    if high is not None:
        return f" of at most {high:g}" if below is None else f" below {high:g}"
    return " that is finite"


def shown(value: Any) -> str:
    """How a message shows what came: the value itself where that is short, else its type."""
    if value is None or isinstance(value, _PLAIN):
        said = repr(value.item() if isinstance(value, np.generic) else value)
        if len(said) <= _SHOWN:
            return said
    return type(value).__name__


def _typed(value: Any) -> str:
    """How a message shows what is of the wrong type: that type, and the value where it is short."""
    kind, said = type(value).__name__, shown(value)
    return said if said in (kind, "None") else f"{kind} {said}"
