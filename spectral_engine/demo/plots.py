"""The demo's figures, as PNG files. Colours are Okabe and Ito's, told apart by any eye."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from spectral_engine.checkpoints.atomic import replacing_file
from spectral_engine.demo.run import DemoRow

_COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
_MARKERS = "os^vD"


def plot_accuracy(rows: Sequence[DemoRow], dense: float, path: Path) -> Path:
    """Draw test accuracy against sparsity, a line for each setting and a level for `dense`."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(100 * dense, color="grey", linestyle="--", linewidth=1, label="dense")
    for index, label in enumerate(dict.fromkeys(row.setting.label for row in rows)):
        line = [row for row in rows if row.setting.label == label]
        axes.plot(
            [100 * row.sparsity for row in line],
            [100 * row.accuracy for row in line],
            color=_COLOURS[index % len(_COLOURS)],
            marker=_MARKERS[index // len(_COLOURS)],
            markersize=5,
            linewidth=1.5,
            linestyle="-" if index < len(_COLOURS) else "-.",
            label=label,
        )
    axes.set_xlabel("zeros among the weights (%)")
    axes.set_ylabel("test accuracy (%)")
    axes.set_title("LeNet-300-100 on Fashion-MNIST, pruned in one shot")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return _save(figure, path)


def plot_spectra(rows: Sequence[DemoRow], sparsity: float, path: Path) -> Path:
    """Draw the leading singular values of fc1 before and after, at one sparsity."""
    shown = [row for row in rows if row.requested == sparsity]
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.add_subplot()
    for index, row in enumerate(shown):
        axes.plot(
            range(1, len(row.after) + 1),
            row.after,
            color=_COLOURS[index % len(_COLOURS)],
            linestyle="-" if index < len(_COLOURS) else "-.",
            linewidth=1.5,
            label=row.setting.label,
        )
    before = shown[0].before
    axes.plot(
        range(1, len(before) + 1), before, color="grey", linewidth=4, alpha=0.5, label="dense"
    )
    axes.set_yscale("log")
    axes.set_xlabel("index of the singular value")
    axes.set_ylabel("singular value of fc1")
    axes.set_title(f"Singular values before and after, sparsity {sparsity:.0%}")
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return _save(figure, path)


def _save(figure: Figure, path: Path) -> Path:
    with replacing_file(path, force=True) as file:
        figure.savefig(file, format="png")
    return path
