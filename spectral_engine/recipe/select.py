"""Which weights a recipe is for."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from spectral_engine._util.globs import patterns
from spectral_engine.recipe.value import Value

Split = Mapping[str, Sequence[str] | Mapping[str, int]]


@dataclass(frozen=True, repr=False)
class Select(Value):
    """Patterns that choose weights.

    A pattern is a class name ("Linear"), a glob over names ("encoder.*", "lstm.*[[]cell]"), a name
    as it is in a report, or "re:..." that must match fully.

    Args:
        targets: only these; None for every weight, output heads included, but no embedding, also
            where an output head shares its memory.
        ignore: not these.
        split: weights that are several matrices, one above the other: from a pattern over names to
            the names of equal parts, {"*.qkv": ("q", "k", "v")}, or to their numbers of rows,
            {"*.qkv": {"q": 64, "k": 16, "v": 16}}.

    Raises:
        TypeError: no strings, or no such mapping. ValueError: a regular expression that does not
            compile.
    """

    targets: str | Iterable[str] | None = None
    ignore: str | Iterable[str] | None = None
    split: Any = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("targets", "ignore"):
            value = getattr(self, name)
            kept = None if value is None else tuple(patterns(value, name))
            object.__setattr__(self, name, kept or (None if name == "ignore" else kept))
        object.__setattr__(self, "split", _frozen(self.split))

    def __repr__(self) -> str:
        given = {"targets": self.targets, "ignore": self.ignore, "split": self.splits or None}
        shown = (
            f"{name}={list(value) if isinstance(value, tuple) else value!r}"
            for name, value in given.items()
            if value is not None
        )
        return f"Select({', '.join(shown)})"

    @property
    def splits(self) -> dict[str, Any]:
        """`split` as a dictionary, as it was given."""
        return {
            pattern: dict(parts) if isinstance(parts[0], tuple) else parts
            for pattern, parts in self.split or ()
        }


def _frozen(split: Any) -> tuple[tuple[str, tuple[Any, ...]], ...] | None:
    """A mapping of mappings or names as tuples, so that it can be compared and hashed."""
    if split is None:
        return None
    pairs = split.items() if isinstance(split, Mapping) else split
    try:
        if not isinstance(split, Mapping | tuple | list):
            raise TypeError
        found = tuple(
            (
                pattern,
                tuple(parts.items())
                if isinstance(parts, Mapping)
                else tuple(tuple(part) if isinstance(part, list) else part for part in parts),
            )
            for pattern, parts in pairs
        )
        well = all(
            isinstance(pattern, str) and not isinstance(parts, str) and parts and _are_parts(parts)
            for pattern, parts in found
        )
    except (TypeError, ValueError):
        well = False
    if not well:
        raise TypeError(
            "split: expected a dictionary from a pattern to the names of equal parts, or from "
            f"name to number of rows; got {split!r}"
        )
    return found or None


def _are_parts(parts: tuple[Any, ...]) -> bool:
    """Whether these are different names, or names with numbers of rows."""
    if all(isinstance(part, str) for part in parts):
        return len(set(parts)) == len(parts)
    return all(
        isinstance(part, tuple)
        and len(part) == 2
        and isinstance(part[0], str)
        and type(part[1]) is int
        and part[1] > 0
        for part in parts
    )
