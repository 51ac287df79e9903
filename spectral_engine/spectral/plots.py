"""Figures of spectra: those of a network side by side, and their evolution through training.

They take names and arrays, and know nothing of tables and trackers.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from spectral_engine.spectral.evolution import Evolution
from spectral_engine.spectral.power_law import Values

#: Lines up to this number get a legend; more are told apart by their place on a colour scale.
LEGEND = 10
_MAP = colormaps["viridis"]


#: Marker and size of each of the ranks in the right panel, in order.
_MARKERS = (("o", 22), ("s", 22), ("|", 60))


def plot_spectra(values: Mapping[str, Values], ranks: Mapping[str, Values], path: Path) -> Path:
    """Left, the singular values of each weight; right, its ranks as shares of the full one.

    Args:
        values: by the name of the weight, its singular values, descending.
        ranks: by what they are, for the legend, (number of weights,); at most three.
        path: the image file.

    Returns:
        The path.
    """
    height = max(4.8, 1.2 + 0.19 * len(values))
    figure = Figure(figsize=(13, height), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = _MAP(np.linspace(0.0, 0.92, len(values)))
    for shown, colour in zip(values.values(), colours, strict=True):
        left.plot(np.arange(1, len(shown) + 1), shown, color=colour, linewidth=1.2)
    left.set(
        xscale="log",
        yscale="log",
        xlabel="index of the singular value",
        ylabel="singular value",
        title="Singular values",
    )
    left.grid(alpha=0.3, which="both")
    places = np.arange(len(values))
    for (label, shares), (marker, size) in zip(ranks.items(), _MARKERS, strict=False):
        right.scatter(shares, places, c=colours, marker=marker, s=size)
        right.scatter([], [], c="grey", marker=marker, label=label)
    right.set(xlim=(0.0, 1.03), ylim=(len(values) - 0.5, -0.5), title="Ranks")
    right.set_xlabel("share of all values")
    right.set_yticks(places, [_short(name, 44) for name in values], fontsize=7)
    right.grid(alpha=0.3)
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.6 / height), ncols=3, frameon=False)
    figure.savefig(path)
    return path


def plot_evolution(
    steps: NDArray[np.int64], weights: Mapping[str, Evolution], rank: int, path: Path
) -> Path:
    """A panel for each weight, its values over the steps; a last one with the ranks of all.

    A dashed line marks the step at which a spectrum had stabilised, a red one where it collapsed.

    Args:
        steps: at which there are records, (T,).
        weights: by name.
        rank: the most values that a weight has; the scale of colours ends there.
        path: the image file.

    Returns:
        The path.
    """
    names = list(weights)
    columns = min(4, math.ceil(math.sqrt(len(names) + 1)))
    rows = math.ceil((len(names) + 1) / columns)
    figure = Figure(figsize=(4.4 * columns + 0.8, 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    scale = Normalize(1, max(2, rank))
    for panel, (name, weight) in zip(panels, weights.items(), strict=False):
        values = weight.singular_values
        for index in range(values.shape[1]):
            # A value of zero has no place on the scale; the line has a gap there.
            line = np.where(values[:, index] > 0.0, values[:, index], np.nan)
            panel.plot(steps, line, color=_MAP(0.92 * scale(index + 1)), linewidth=1)
        if np.nanmax(values, initial=0.0) > 0.0:
            panel.set_yscale("log")
        for step, style, colour in (
            (weight.stabilised, "--", "black"), (weight.collapsed, "-", "#D55E00"),
        ):  # fmt: skip
            if step is not None:
                panel.axvline(step, linestyle=style, color=colour, linewidth=1)
        _finish(panel, _short(name, 40), "singular value")
    last = panels[len(names)]
    colours = colormaps["plasma"](np.linspace(0.0, 0.85, len(names)))
    for weight, colour in zip(weights.values(), colours, strict=True):
        last.plot(steps, weight.stable_rank, color=colour)
    if len(names) <= LEGEND:  # as labels of the lines, names that begin with _ would be left out
        last.legend(last.lines, [_short(name, 24) for name in names], fontsize=7, frameon=False)
    _finish(last, "stable rank of all", "stable rank")
    for panel in panels[len(names) + 1 :]:
        panel.set_axis_off()
    figure.colorbar(
        ScalarMappable(scale, _MAP.resampled(256)),
        ax=panels.tolist(),
        label="index of the singular value",
        fraction=0.03,
    )
    figure.savefig(path)
    return path


def _finish(panel: Axes, title: str, label: str) -> None:
    panel.set_title(title, fontsize=9)
    panel.set_xlabel("step", fontsize=8)
    panel.set_ylabel(label, fontsize=8)
    panel.tick_params(which="both", labelsize=8)
    panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    panel.grid(alpha=0.3)


def _short(name: str, length: int) -> str:
    """The end of a name, where layers differ, cut to `length`."""
    return name if len(name) <= length else "…" + name[1 - length :]
