"""The demo's two figures, as PNG files: one message each, said in the title.

Colours are Okabe and Ito's, told apart by any eye; lines have their names at their ends.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from spectral_engine.checkpoints.atomic import replacing_file
from spectral_engine.demo.story import RANK, SPARSITY, Outcome

_COLOURS = ("#D55E00", "#0072B2", "#009E73")
_DENSE = "#777777"
#: Labels closer than this share of the axis are moved apart.
_APART = 0.065


def plot_accuracy(rows: Sequence[Sequence[Outcome]], dense: float, path: Path) -> Path:
    """Draw accuracy against sparsity, a line for each way.

    Args:
        rows: of each way, its outcomes by sparsity, ascending.
        dense: the accuracy before pruning.
        path: the file.

    Returns:
        The path.
    """
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(100 * dense, color=_DENSE, linewidth=1, linestyle="--")
    ends = {"dense": (100 * dense, _DENSE)}
    for outcomes, colour in zip(rows, _COLOURS, strict=False):
        values = [100 * one.accuracy for one in outcomes]
        places = [100 * one.sparsity for one in outcomes]
        axes.plot(places, values, color=colour, marker="o", markersize=4, linewidth=2)
        ends[outcomes[-1].way.label] = (values[-1], colour)
    right = max(100 * outcomes[-1].sparsity for outcomes in rows)
    axes.set_ylim(0.0, 100.0)
    _label(axes, right, ends, 0.0, 100.0)
    axes.set_xlabel("zeros among the weights (%)")
    axes.set_ylabel("images told right (%)")
    at = [
        next(one for one in outcomes if abs(one.sparsity - SPARSITY) < 0.005) for outcomes in rows
    ]
    told = ", ".join(f"{one.accuracy:.1%}" for one in at)
    axes.set_title(f"{SPARSITY:.0%} zeros: {told} right, of {dense:.1%}", loc="left")
    _plain(axes)
    return _save(figure, path)


def plot_spectrum(outcomes: Sequence[Outcome], dense: NDArray[np.float64], path: Path) -> Path:
    """Draw what is left along each leading singular direction of fc1.

    Args:
        outcomes: one of each way.
        dense: the values before pruning, (RANK,).
        path: the file.

    Returns:
        The path.
    """
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    index = np.arange(1, len(dense) + 1)
    axes.plot(index, dense, color=_DENSE, linewidth=6, alpha=0.4, solid_capstyle="round")
    ends = {"dense": (float(dense[-1]), _DENSE)}
    for one, colour in zip(outcomes, _COLOURS, strict=False):
        axes.plot(index, one.values, color=colour, linewidth=2)
        ends[f"{one.way.label}: {one.kept:.1%}"] = (float(one.values[-1]), colour)
    high = 1.05 * float(max(dense[0], *(one.values.max() for one in outcomes)))
    axes.set_ylim(0.0, high)
    _label(axes, float(index[-1]), ends, 0.0, high)
    axes.set_xlabel(f"the {RANK} leading singular directions of fc1")
    axes.set_ylabel("what is left of the singular value")
    kept = ", ".join(f"{one.kept:.1%}" for one in outcomes)
    axes.set_title(f"{SPARSITY:.0%} zeros: {kept} of the spectrum is kept", loc="left")
    _plain(axes)
    return _save(figure, path)


def _label(
    axes: Axes, right: float, ends: Mapping[str, tuple[float, str]], low: float, high: float
) -> None:
    """Write each line's name beside its end, moved apart where two would overlap."""
    taken = low - high
    for name, (value, colour) in sorted(ends.items(), key=lambda end: end[1][0]):
        taken = max(value, taken + _APART * (high - low))
        axes.annotate(
            name, (right, taken), (8, 0), textcoords="offset points", color=colour, va="center",
            annotation_clip=False,
        )  # fmt: skip


def _plain(axes: Axes) -> None:
    axes.grid(axis="y", alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _save(figure: Figure, path: Path) -> Path:
    with replacing_file(path, force=True) as file:
        figure.savefig(file, format="png", dpi=120)
    return path
