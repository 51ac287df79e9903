"""Which weights patterns choose, and which patterns have chosen nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from spectral_engine._util.globs import matches, patterns
from spectral_engine.recipe.recipe import Recipe


class Chooser(Protocol):
    """What chooses among the weights of a model or file."""

    def reason_against(
        self, names: Sequence[str], classes: Sequence[str] = (), opt_in: str = ""
    ) -> str | None:
        """None if a weight of these names and classes is chosen, else the reason why not.

        opt_in: why it is only chosen where a pattern of `targets` names it; empty for others.
        """
        ...

    def note_unmatched(self, patterns: Sequence[str]) -> None:
        """Other patterns that matched nothing."""
        ...


@dataclass
class Selector:
    """Patterns of `targets` and `ignore`: class names, globs over names, or "re:...".

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
        """From the arguments of a call: None, a pattern or several.

        Raises:
            TypeError: not strings. ValueError: a regular expression that does not compile.
        """
        return cls(
            None if targets is None else patterns(targets, "targets"),
            [] if ignore is None else patterns(ignore, "ignore"),
        )

    def reason_against(
        self, names: Sequence[str], classes: Sequence[str] = (), opt_in: str = ""
    ) -> str | None:
        """See `Chooser`."""
        ignored = self._matching(self.ignore, names, classes, "ignore")
        wanted = self._matching(self.targets or [], names, classes, "targets")
        if ignored:
            return f"ignored by {ignored[0]!r}"
        if self.targets is not None:
            return None if wanted else "not among targets"
        return f"{opt_in}; name it in targets to prune it" if opt_in else None

    def note_unmatched(self, patterns: Sequence[str]) -> None:
        """See `Chooser`."""
        self.unmatched += patterns

    def __str__(self) -> str:
        return f"targets={self.targets}, ignore={self.ignore}"

    def _matching(
        self, found: list[str], names: Sequence[str], classes: Sequence[str], argument: str
    ) -> list[str]:
        matching = [pattern for pattern in found if matches(pattern, names, classes)]
        used = {f"{argument} {pattern!r}" for pattern in matching}
        self.unmatched = [pattern for pattern in self.unmatched if pattern not in used]
        return matching


class RecipeSelector:
    """The weights that recipes select, narrowed by the `targets` and `ignore` of a call.

    Of several recipes that select a weight, the first is that weight's.
    """

    def __init__(self, recipes: Sequence[Recipe], targets: Any = None, ignore: Any = None) -> None:
        self._call = Selector.of(targets, ignore)
        self._own = [Selector.of(one.select.targets, one.select.ignore) for one in recipes]
        self._others: list[str] = []

    @property
    def unmatched(self) -> list[str]:
        """Patterns that matched nothing yet; those of several recipes with the recipe's number."""
        several = len(self._own) > 1
        return [
            *self._call.unmatched,
            *(
                f"recipe {index}: {pattern}" if several else pattern
                for index, selector in enumerate(self._own, 1)
                for pattern in selector.unmatched
            ),
            *self._others,
        ]

    def note_unmatched(self, patterns: Sequence[str]) -> None:
        """See `Chooser`."""
        self._others += patterns

    def reason_against(
        self, names: Sequence[str], classes: Sequence[str] = (), opt_in: str = ""
    ) -> str | None:
        """See `Chooser`."""
        reasons = self._reasons(names, classes, opt_in)
        if None in reasons:
            return None
        return reasons[0] if len(set(reasons)) == 1 else "no recipe selects it"

    def recipe_of(self, names: Sequence[str], classes: Sequence[str] = (), opt_in: str = "") -> int:
        """The index of the recipe of a weight that is chosen."""
        return self._reasons(names, classes, opt_in).index(None)

    def _reasons(
        self, names: Sequence[str], classes: Sequence[str], opt_in: str
    ) -> list[str | None]:
        """Why each recipe does not prune a weight, None for those that do."""
        named = self._call.targets is not None
        own = [one.reason_against(names, classes, "" if named else opt_in) for one in self._own]
        # A call without targets leaves it to the recipes whether what is opt-in is named.
        against = self._call.reason_against(names, classes)
        return own if against is None else [against] * len(own)

    def __str__(self) -> str:
        given = [selector for selector in (self._call, *self._own) if selector != Selector([], [])]
        shown = [str(one) for one in given if one.targets is not None or one.ignore]
        return " and ".join(shown) or str(self._call)
