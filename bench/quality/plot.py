"""The summary as a figure: one panel a network, its score against sparsity."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from bench.figures import save
from bench.quality.grid import BASELINE, Setting
from bench.quality.summary import Summary, standings

#: Colours that are told apart by those who see few, of the best setting without data, and with it.
COLOURS = {False: "#D55E00", True: "#0072B2"}
#: Networks with fewer sparsities measured make no line.
LEAST_POINTS = 3
ACROSS = 2


def draw(summary: Summary, path: Path) -> None:
    """Write a PNG: magnitude in black, the best settings overall in colour, all others in grey.

    The best of those without data and the best with data; lines are labelled in the first panel.
    """
    chosen = {kind: _best(summary, kind) for kind in (False, True)}
    sparsities: dict[str, set[float]] = {}
    for cell in summary.cells:
        sparsities.setdefault(cell.network, set()).add(cell.sparsity)
    networks = [name for name, found in sparsities.items() if len(found) >= LEAST_POINTS]
    networks = networks or list(sparsities)
    across = min(ACROSS, len(networks))
    down = -(-len(networks) // across)
    figure = Figure(figsize=(4.6 * across, 3.2 * down), layout="constrained")
    FigureCanvasAgg(figure)
    for i, network in enumerate(networks):
        axes = figure.add_subplot(down, across, i + 1)
        cells = [cell for cell in summary.cells if cell.network == network]
        drawn = dict.fromkeys(cell.setting for cell in cells)
        for setting in drawn:
            axes.plot(*_line(summary, network, setting), color="0.87", linewidth=0.6, zorder=1)
        shown = [(BASELINE, "black", "magnitude")] + [
            (one, COLOURS[kind], f"{'with' if kind else 'without'} data: {one.label}")
            for kind, one in chosen.items()
            if one is not None and one in drawn
        ]
        for setting, colour, label in shown:
            x, y = _line(summary, network, setting)
            axes.plot(x, y, color=colour, marker="o", markersize=4, linewidth=2, label=label)
        metric, dense = next(iter(summary.dense[network].items()))
        axes.axhline(dense, color="black", linewidth=0.8, linestyle=":", label="dense")
        axes.set(title=network, xlabel="zeros", ylabel=metric)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, 0))
        axes.spines[["top", "right"]].set_visible(False)
        if i == 0:
            handles, labels = axes.get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    save(figure, path)


def _best(summary: Summary, calibrated: bool) -> Setting | None:
    """The best on average, of those measured in at least half as many places as the most
    widely measured; None where there is no other than the baseline.
    """
    found = [one for one in standings(summary, calibrated) if one.setting != BASELINE]
    wide = [one for one in found if 2 * one.places >= found[0].places]
    return max(wide, key=lambda one: one.mean).setting if wide else None


def _line(summary: Summary, network: str, setting: Setting) -> tuple[list[float], list[float]]:
    cells = sorted(
        (c for c in summary.cells if c.network == network and c.setting == setting),
        key=lambda cell: cell.sparsity,
    )
    return [cell.sparsity for cell in cells], [cell.value for cell in cells]
