"""Patterns that choose weights by name or by class."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from spectral_engine._util.globs import matches, patterns


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
