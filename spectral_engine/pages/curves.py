"""Singular values as curves of an SVG, on a logarithmic scale."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: The box that curves are drawn in, whatever size they are shown at.
WIDTH, HEIGHT = 120, 40
#: More points than this cannot be told apart at that size.
MOST_POINTS = 64
#: Values under this share of the largest are off the scale, as is zero.
FLOOR = 1e-6


@dataclass(frozen=True)
class Curves:
    """Two curves in one box of WIDTH x HEIGHT.

    before, after: the `d` of an SVG path, empty where there are no values
    top, bottom: what the upper and the lower edge stand for; last: the index at the right edge
    """

    before: str
    after: str
    top: float
    bottom: float
    last: int


def curves_of(before: Sequence[float], after: Sequence[float]) -> Curves | None:
    """The curves of singular values before and after; None where none is above zero.

    Args:
        before, after: descending, of any length, also none.
    """
    known = [value for value in (*before, *after) if math.isfinite(value) and value > 0.0]
    if not known:
        return None
    top = max(known)
    bottom = max(min(known), FLOOR * top)
    if bottom > 0.9 * top:  # flat: a line in the middle of a small scale
        bottom, top = bottom / 2, top * 2
    last = max(len(before), len(after))
    return Curves(
        _path(before, top, bottom, last), _path(after, top, bottom, last), top, bottom, last
    )


def _path(values: Sequence[float], top: float, bottom: float, last: int) -> str:
    """A line through the values; what lies under the scale, or is not finite, ends it."""
    stride = max(1, math.ceil(len(values) / MOST_POINTS))
    shown = sorted({*range(0, len(values), stride), *([len(values) - 1] if values else [])})
    parts: list[str] = []
    pen_down = False
    for index in shown:
        value = values[index]
        if not (math.isfinite(value) and value >= bottom * (1 - 1e-9)):
            pen_down = False
            continue
        x = WIDTH * (index / (last - 1) if last > 1 else 0.5)
        y = HEIGHT * math.log(top / value) / math.log(top / bottom)
        parts.append(f"{'L' if pen_down else 'M'}{x:.4g} {min(max(y, 0.0), HEIGHT):.3g}")
        pen_down = True
    if len(parts) == 1:
        parts.append("h1")  # a point would not show
    return "".join(parts)
