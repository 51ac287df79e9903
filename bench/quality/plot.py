"""The summary as a figure: one panel a network, its score against sparsity."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.figures import save
from bench.quality.grid import BASELINE, Setting
from bench.quality.summary import Summary, standings

#: How many of the best settings, of each kind, are drawn in colour.
HIGHLIGHTED = 3


def draw(summary: Summary, path: Path) -> None:
    """Write a PNG: magnitude in black, the best settings overall in colour, all others in grey."""
    chosen = [setting for calibrated in (False, True) for setting in _best(summary, calibrated)]
    networks = list(dict.fromkeys(network for network, _ in summary.places))
    figure = Figure(figsize=(4.2 * len(networks), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    for i, network in enumerate(networks):
        axes = figure.add_subplot(1, len(networks), i + 1)
        cells = [cell for cell in summary.cells if cell.network == network]
        drawn = dict.fromkeys(cell.setting for cell in cells)
        for setting in drawn:
            if setting not in chosen and setting != BASELINE:
                axes.plot(*_line(summary, network, setting), color="0.85", linewidth=0.7, zorder=1)
        for number, setting in enumerate(chosen):
            if setting in drawn:
                style = "-" if setting.calibrated else "--"
                axes.plot(
                    *_line(summary, network, setting),
                    style, marker="o", markersize=3, color=f"C{number}", label=setting.label,
                )  # fmt: skip
        points = _line(summary, network, BASELINE)
        axes.plot(*points, color="black", marker="o", markersize=3, label=BASELINE.label)
        metric, dense = next(iter(summary.dense[network].items()))
        axes.axhline(dense, color="black", linewidth=0.7, linestyle=":", label="dense")
        axes.set(title=network, xlabel="zeros", ylabel=metric)
        if i == 0:
            handles = axes.get_legend_handles_labels()
            figure.legend(*handles, loc="outside lower center", ncols=4, fontsize=8)
    save(figure, path)


def _best(summary: Summary, calibrated: bool) -> list[Setting]:
    """The best on average, among those measured in at least half as many places as the most
    widely measured.
    """
    found = [one for one in standings(summary, calibrated) if one.setting != BASELINE]
    wide = [one for one in found if 2 * one.places >= found[0].places]
    return [one.setting for one in sorted(wide, key=lambda one: -one.mean)][:HIGHLIGHTED]


def _line(summary: Summary, network: str, setting: Setting) -> tuple[list[float], list[float]]:
    cells = sorted(
        (c for c in summary.cells if c.network == network and c.setting == setting),
        key=lambda cell: cell.sparsity,
    )
    return [cell.sparsity for cell in cells], [cell.value for cell in cells]
