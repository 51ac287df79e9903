"""What a report says, apart from how it is shown."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from spectral_engine._util.text import natural

#: In the head of each page: by it a page of ours is known.
GENERATOR = '<meta name="generator" content="spectral-engine">'


@dataclass(frozen=True)
class Column:
    """A column of a sheet.

    tip: what the numbers are, in a few words
    words: whether its cells are words, which stand on the left
    bar: whether its keys are shares in [0, 1], which a page draws as bars
    extra: whether a narrow terminal does without it
    page_only: whether a terminal never shows it
    """

    title: str
    tip: str = ""
    words: bool = False
    bar: bool = False
    extra: bool = False
    page_only: bool = False


@dataclass(frozen=True)
class Cell:
    """What stands in a column; `key` is what it is sorted by, None for nothing known."""

    text: str
    key: float | None = None


@dataclass(frozen=True)
class Row:
    """One weight, or one round: its name, and the cells of the other columns.

    before, after: leading singular values, descending; empty where they were not measured
    """

    name: str
    cells: Sequence[Cell]
    before: Sequence[float] = ()
    after: Sequence[float] = ()


@dataclass(frozen=True)
class Listed:
    """Names of which one thing is said: "left alone", "an embedding", the names."""

    what: str
    reason: str
    names: Sequence[str]

    def line(self, most: int = 4) -> str:
        """One line, with at most so many of the names."""
        more = f" and {len(self.names) - most} more" if len(self.names) > most else ""
        names = ", ".join(self.names[:most]) + more
        return f"{self.what}{', ' if self.reason else ''}{self.reason}: {names}"


@dataclass(frozen=True)
class Sheet:
    """A report's content.

    title: one line. facts: what a reader looks for first, as label and value.
    warnings: what may be wrong. listed: what was left alone, by reason. notes: what else there is.
    columns: those after the name; `name` is the title of the first. total: the last row, if any.
    caption: what the columns mean, in one line. hint: how to see more, for a page.
    curves: what the two curves of a row are called.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    facts: Sequence[tuple[str, str]] = ()
    warnings: Sequence[Listed] = ()
    listed: Sequence[Listed] = ()
    notes: Sequence[str] = ()
    name: str = "weight"
    total: Row | None = None
    caption: str = ""
    hint: str = ""
    curves: tuple[str, str] = ("before", "after")


def numeral(value: float | int | None, form: str = ".4f", prefix: str = "") -> Cell:
    """A number as a cell; a dash where it is None, and no key where it is not finite."""
    if value is None:
        return Cell("-")
    return Cell(f"{prefix}{value:{form}}", float(value) if math.isfinite(value) else None)


def sizes(shape: Sequence[int]) -> Cell:
    """A shape as a cell, sorted by its entries."""
    return Cell("x".join(map(str, shape)) or "scalar", float(math.prod(shape)))


def by_reason(what: str, pairs: Iterable[tuple[str, str]]) -> list[Listed]:
    """Names with their reasons as lists, a list a reason, in the order in which they come."""
    found: dict[str, list[str]] = {}
    for name, reason in pairs:
        found.setdefault(reason, []).append(name)
    return [Listed(what, reason, in_order(names)) for reason, names in found.items()]


def in_order(names: Iterable[str]) -> list[str]:
    """Names in natural order: layers 0, 1, 2, 10."""
    return sorted(names, key=natural)


def counted(number: int, thing: str, plural: str = "s") -> str:
    """A number of things: "1 weight", "2 weights"."""
    return f"{number:,} {thing}{'' if number == 1 else plural}"
