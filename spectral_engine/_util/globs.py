"""Patterns over names and class names: globs, names as they are, and "re:..."."""

import fnmatch
import re
from collections.abc import Iterable, Sequence
from typing import Any

from spectral_engine._util.checks import shown


def patterns(value: Any, argument: str) -> list[str]:
    """One pattern or several, as a list.

    Raises:
        TypeError: not strings. ValueError: a regular expression that does not compile.
    """
    found = [value] if isinstance(value, str) else value
    if isinstance(found, Iterable):
        try:
            found = list(found)
        except (TypeError, RuntimeError):  # an array of no dimensions, a nested tensor
            found = None
    if not isinstance(found, list) or not all(isinstance(pattern, str) for pattern in found):
        said = value if isinstance(value, list | tuple) else shown(value)
        raise TypeError(f"{argument}: expected a string or a list of strings; got {said}")
    for pattern in found:
        try:
            re.compile(pattern.removeprefix("re:") if pattern.startswith("re:") else "")
        except re.error as error:
            raise ValueError(
                f"{argument}: expected a regular expression after 're:'; got {pattern!r}: {error}"
            ) from error
    return found


def matches(pattern: str, names: Sequence[str], classes: Sequence[str] = ()) -> bool:
    """Whether a pattern is one of the classes, or matches one of the names.

    A name matches itself, also where it holds brackets, which a glob takes for a set of characters.
    """
    if pattern.startswith("re:"):
        return any(re.fullmatch(pattern[3:], name) for name in names)
    return (
        pattern in classes
        or pattern in names
        or any(fnmatch.fnmatchcase(name, pattern) for name in names)
    )
