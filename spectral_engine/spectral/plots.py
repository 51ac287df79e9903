"""Figures of spectra: those of a network side by side, and their evolution through training.

They take names and arrays, and know nothing of tables and trackers. A network of hundreds of
weights has a few kinds of them: "layers.*.mlp.weight" stands for those of all layers.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from spectral_engine.checkpoints.atomic import replacing_file
from spectral_engine.spectral.evolution import Evolution
from spectral_engine.spectral.power_law import Values

#: Lines up to this number get a legend; more are told apart by their place on a colour scale.
LEGEND = 10
#: Rows of ranks, a weight or a kind each, that a figure has room for.
MOST_ROWS = 40
#: Panels of weights, or of kinds, that a figure has room for.
MOST_PANELS = 15
_MAP = colormaps["viridis"]
#: Marker and size of each of the ranks in the right panel, in order.
_MARKERS = (("o", 22), ("s", 22), ("|", 60))
_SMALL = 8


class Picture(Figure):
    """A figure that a notebook shows, also where pyplot was never imported."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def written(figure: Figure, path: Path) -> Path:
    """Write a figure to an image file, whole or not at all, over an older one; the path.

    Raises:
        ValueError: an ending that Matplotlib does not know.
    """
    kind = path.suffix.removeprefix(".").lower() or "png"
    if kind not in figure.canvas.get_supported_filetypes():
        raise ValueError(f"path: expected an ending such as .png or .pdf; got {path.name!r}")
    with replacing_file(path, force=True) as file:
        figure.savefig(file, format=kind)
    return path


def kinds_of(names: Sequence[str], most: int) -> dict[str, list[int]]:
    """Places of names by what a row or panel is called: each alone, or of many those of a kind.

    Args:
        names: of the weights.
        most: so many may stand alone.
    """
    if len(names) <= most:
        return {name: [place] for place, name in enumerate(names)}
    found: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        found.setdefault(re.sub(r"(?<![^.])\d+(?![^.])", "*", name), []).append(place)
    return found


def plot_spectra(values: Mapping[str, Values], ranks: Mapping[str, Values]) -> Figure:
    """Left, the singular values of each weight; right, its ranks as shares of the full one.

    Args:
        values: by the name of the weight, its singular values, descending.
        ranks: by what they are, for the legend, (number of weights,); at most three.
    """
    kinds = kinds_of(list(values), MOST_ROWS)
    rows = dict(list(kinds.items())[:MOST_ROWS])
    height = max(4.8, 1.2 + 0.19 * len(rows))
    figure = Picture(figsize=(13, height), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = _MAP(np.linspace(0.0, 0.92, len(values)))
    thick = 1.2 if len(values) <= MOST_ROWS else 0.7
    for shown, colour in zip(values.values(), colours, strict=True):
        left.plot(np.arange(1, len(shown) + 1), shown, color=colour, linewidth=thick)
    left.set(
        xscale="log",
        yscale="log",
        xlabel="index of the singular value",
        ylabel="singular value",
        title=f"Singular values of {len(values)} weights, first (dark) to last",
    )
    left.grid(alpha=0.3, which="both")
    for (label, shares), (marker, size) in zip(ranks.items(), _MARKERS, strict=False):
        for row, places in enumerate(rows.values()):
            height_of = np.full(len(places), row)
            right.scatter(shares[places], height_of, c=colours[places], marker=marker, s=size)
        right.scatter([], [], c="grey", marker=marker, label=label)
    labels = [_short(name, 44) + _times(places) for name, places in rows.items()]
    right.set(xlim=(0.0, 1.03), ylim=(len(rows) - 0.5, -0.5), title="Ranks" + _more(kinds, rows))
    right.set_xlabel("share of all values")
    right.set_yticks(np.arange(len(rows)), labels, fontsize=_SMALL)
    right.grid(alpha=0.3)
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.6 / height), ncols=3, frameon=False)
    return figure


def plot_evolution(steps: NDArray[np.int64], weights: Mapping[str, Evolution], rank: int) -> Figure:
    """A panel for each weight, its values over the steps; a last one with the ranks of all.

    A dashed line marks the step at which a spectrum had stabilised, a red one where it collapsed.
    Of many weights there is a panel a kind, with the largest value of each.

    Args:
        steps: at which there are records, (T,).
        weights: by name.
        rank: the most values that a weight has; the scale of colours ends there.
    """
    every = list(weights.values())
    kinds = kinds_of(list(weights), MOST_PANELS)
    shown = dict(list(kinds.items())[:MOST_PANELS])
    columns = min(4, math.ceil(math.sqrt(len(shown) + 1)))
    rows = math.ceil((len(shown) + 1) / columns)
    figure = Picture(figsize=(4.4 * columns + 0.8, 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    alone = len(weights) <= MOST_PANELS
    scale = Normalize(1, max(2, rank if alone else len(weights)))
    for panel, (name, places) in zip(panels, shown.items(), strict=False):
        own = [every[place] for place in places]
        lines = (
            [(index + 1, own[0].singular_values[:, index]) for index in range(_width(own[0]))]
            if alone
            else [(p + 1, one.singular_values[:, 0]) for p, one in zip(places, own, strict=True)]
        )
        for place, values in lines:
            # A value of zero has no place on the scale; the line has a gap there.
            line = np.where(values > 0.0, values, np.nan)
            panel.plot(steps, line, color=_MAP(0.92 * scale(place)), linewidth=1)
        if any(np.nanmax(values, initial=0.0) > 0.0 for _, values in lines):
            panel.set_yscale("log")
        _mark(panel, own)
        _finish(panel, _short(name, 40) + _times(places), "singular value" if alone else "largest")
    last = panels[len(shown)]
    colours = colormaps["plasma"](np.linspace(0.0, 0.85, len(every)))
    for weight, colour in zip(every, colours, strict=True):
        last.plot(steps, weight.stable_rank, color=colour)
    if len(every) <= LEGEND:  # as labels of the lines, names that begin with _ would be left out
        last.legend(last.lines, [_short(n, 24) for n in weights], fontsize=7, frameon=False)
    _finish(last, "stable rank of all" + _more(kinds, shown), "stable rank")
    for panel in panels[len(shown) + 1 :]:
        panel.set_axis_off()
    figure.colorbar(
        ScalarMappable(scale, _MAP.resampled(256)),
        ax=panels.tolist(),
        label="index of the singular value" if alone else "place of the weight",
        fraction=0.03,
    )
    return figure


def _width(weight: Evolution) -> int:
    return int(weight.singular_values.shape[1])


def _mark(panel: Axes, weights: Sequence[Evolution]) -> None:
    """Lines where spectra had stabilised, all of them, and where the first of them collapsed."""
    rests = [weight.stabilised for weight in weights]
    falls = [weight.collapsed for weight in weights if weight.collapsed is not None]
    rested = [step for step in rests if step is not None]
    if len(rested) == len(rests):
        panel.axvline(max(rested), linestyle="--", color="black", linewidth=1)
    if falls:
        panel.axvline(min(falls), color="#D55E00", linewidth=1)


def _finish(panel: Axes, title: str, label: str) -> None:
    panel.set_title(title, fontsize=9)
    panel.set_xlabel("step", fontsize=8)
    panel.set_ylabel(label, fontsize=8)
    panel.tick_params(which="both", labelsize=8)
    panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    panel.grid(alpha=0.3)


def _times(places: Sequence[int]) -> str:
    return f" x{len(places)}" if len(places) > 1 else ""


def _more(kinds: Mapping[str, object], shown: Mapping[str, object]) -> str:
    left = len(kinds) - len(shown)
    return f" ({left} more not shown)" if left else ""


def _short(name: str, length: int) -> str:
    """The end of a name, where layers differ, cut to `length`."""
    return name if len(name) <= length else "…" + name[1 - length :]
