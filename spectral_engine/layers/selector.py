"""Patterns that choose weights by name or by class."""

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Selector:
    """Patterns that choose weights: class names, globs over names, "re:..." that must match fully.

    A weight with several names is chosen if one of `targets` matches any of them and none of
    `ignore` does. `unmatched` are the patterns that have matched nothing yet, so that a mistyped
    one does not go unseen.
    """

    targets: list[str] | None
    ignore: list[str]
    unmatched: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.unmatched = [
            *(f"targets {pattern!r}" for pattern in self.targets or []),
            *(f"ignore {pattern!r}" for pattern in self.ignore),
        ]

    @classmethod
    def of(cls, targets: Any, ignore: Any) -> "Selector":
        """From the arguments of `prune`: None, a pattern or several.

        Raises:
            TypeError: not strings. ValueError: a regular expression that does not compile.
        """
        return cls(
            None if targets is None else patterns(targets, "targets"),
            [] if ignore is None else patterns(ignore, "ignore"),
        )

    def reason_against(self, names: Sequence[str], classes: Sequence[str] = ()) -> str | None:
        """None if a weight of these names and classes is to be pruned, else the reason why not."""
        ignored = self._matching(self.ignore, names, classes, "ignore")
        wanted = self._matching(self.targets or [], names, classes, "targets")
        if ignored:
            return f"ignored by {ignored[0]!r}"
        return "not among targets" if self.targets is not None and not wanted else None

    def _matching(
        self, found: list[str], names: Sequence[str], classes: Sequence[str], argument: str
    ) -> list[str]:
        matching = [pattern for pattern in found if matches(pattern, names, classes)]
        used = {f"{argument} {pattern!r}" for pattern in matching}
        self.unmatched = [pattern for pattern in self.unmatched if pattern not in used]
        return matching


def patterns(value: Any, argument: str) -> list[str]:
    """One pattern or several, as a list.

    Raises:
        TypeError: not strings. ValueError: a regular expression that does not compile.
    """
    found = [value] if isinstance(value, str) else value
    if isinstance(found, Iterable):
        found = list(found)
    if not isinstance(found, list) or not all(isinstance(pattern, str) for pattern in found):
        raise TypeError(f"{argument}: expected a string or a list of strings; got {value!r}")
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
