"""Figures of spectra: those of a network side by side, and their evolution through training."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from spectral_engine.spectral.table import Spectra
    from spectral_engine.spectral.tracker import SpectrumTracker

#: Lines up to this number get a legend; more are told apart by their place on a colour scale.
LEGEND = 10
_MAP = colormaps["viridis"]


def plot_spectra(table: "Spectra", path: Path) -> Path:
    """Left, the known singular values of each weight; right, its ranks as a share of the full."""
    layers = table.layers
    height = max(4.8, 1.2 + 0.19 * len(layers))
    figure = Figure(figsize=(13, height), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = _MAP(np.linspace(0.0, 0.92, len(layers)))
    for layer, colour in zip(layers, colours, strict=True):
        shown = layer.known[layer.known > layer.resolution]
        left.plot(np.arange(1, len(shown) + 1), shown, color=colour, linewidth=1.2)
    left.set(
        xscale="log",
        yscale="log",
        xlabel="index of the singular value",
        ylabel="singular value",
        title="Singular values",
    )
    left.grid(alpha=0.3, which="both")
    full = np.array([layer.count for layer in layers])
    places = np.arange(len(layers))
    for label, marker, ranks in (
        ("stable rank", "o", [layer.statistics.stable_rank for layer in layers]),
        ("effective rank", "s", [layer.statistics.effective_rank for layer in layers]),
        ("values with 90 % of the energy", "|", [layer.statistics.rank_90 for layer in layers]),
    ):
        right.scatter(
            np.array(ranks) / full,
            places,
            c=colours,
            marker=marker,
            s=60 if marker == "|" else 22,
        )
        right.scatter([], [], c="grey", marker=marker, label=label)
    right.set(xlim=(0.0, 1.03), ylim=(len(layers) - 0.5, -0.5), title="Ranks")
    right.set_xlabel("share of all values")
    right.set_yticks(places, [_short(layer.name, 44) for layer in layers], fontsize=7)
    right.grid(alpha=0.3)
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.6 / height), ncols=3, frameon=False)
    figure.savefig(path)
    return path


def plot_evolution(tracker: "SpectrumTracker", path: Path) -> Path:
    """A panel for each weight, its values over the steps; a last one with the ranks of all.

    A dashed line marks the step at which a spectrum had stabilised, a red one where it collapsed.

    Raises:
        ValueError: nothing was recorded yet.
    """
    if len(tracker.steps) == 0:
        raise ValueError("tracker: expected at least one record to plot; got none")
    names = tracker.names
    columns = min(4, math.ceil(math.sqrt(len(names) + 1)))
    rows = math.ceil((len(names) + 1) / columns)
    figure = Figure(figsize=(4.4 * columns + 0.8, 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    scale = Normalize(1, max(2, tracker.rank))
    stabilised, collapsed = tracker.stabilised(), tracker.collapsed()
    for panel, name in zip(panels, names, strict=False):
        values = tracker.singular_values(name)
        for index in range(values.shape[1]):
            # A value of zero has no place on the scale; the line has a gap there.
            line = np.where(values[:, index] > 0.0, values[:, index], np.nan)
            panel.plot(tracker.steps, line, color=_MAP(0.92 * scale(index + 1)), linewidth=1)
        if np.nanmax(values, initial=0.0) > 0.0:
            panel.set_yscale("log")
        for steps, style, colour in ((stabilised, "--", "black"), (collapsed, "-", "#D55E00")):
            step = steps[name]
            if step is not None:
                panel.axvline(step, linestyle=style, color=colour, linewidth=1)
        _finish(panel, _short(name, 40), "singular value")
    last = panels[len(names)]
    colours = colormaps["plasma"](np.linspace(0.0, 0.85, len(names)))
    for name, colour in zip(names, colours, strict=True):
        last.plot(tracker.steps, tracker.stable_rank(name), color=colour)
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
