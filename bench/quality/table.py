"""The summary as tables for the terminal."""

from collections.abc import Iterator

from rich import box
from rich.table import Table

from bench.quality.grid import BASELINE
from bench.quality.summary import Standing, Summary, standings


def tables(summary: Summary, shown: int = 12) -> Iterator[Table]:
    """What wins where, how settings stand overall, then every failure and refusal."""
    yield winners(summary)
    for calibrated in (False, True):
        found = standings(summary, calibrated)
        if found:
            yield overall(found[:shown], calibrated)
    yield failures(summary)
    if summary.refused:
        table = _table("refused by prune", "network and setting", "why")
        for label, reason in summary.refused.items():
            table.add_row(label, reason)
        yield table


def winners(summary: Summary) -> Table:
    """Plain magnitude, the best data-free and the best calibrated setting of each place."""
    table = _table(
        "what wins where",
        "network", "zeros", "dense", "magnitude", "best without data", "", "best calibrated", "",
    )  # fmt: skip
    previous = ""
    for network, sparsity in summary.places:
        if network != previous:
            table.add_section()
        cells = summary.at(network, sparsity)
        base = next(cell for cell in cells if cell.setting == BASELINE)
        best = [
            next((c for c in cells if c.setting.calibrated == calibrated), None)
            for calibrated in (False, True)
        ]
        dense, metric = next(iter(summary.dense[network].values())), next(iter(base.score))
        table.add_row(
            f"{network}, {metric}" if network != previous else "",
            f"{sparsity:.0%}",
            f"{dense:.3f}" if network != previous else "",
            f"{base.value:.3f}",
            *(
                text
                for cell in best
                for text in (
                    ("-", "") if cell is None else (f"{cell.value:.3f}", cell.setting.label)
                )
            ),
        )
        previous = network
    return table


def overall(found: list[Standing], calibrated: bool) -> Table:
    """Mean and worst gain over plain magnitude."""
    kind = "with calibration" if calibrated else "without data"
    table = _table(
        f"gain over magnitude {kind}: the best on average",
        "setting", "places", "mean", "worst", "where", "below magnitude in",
    )  # fmt: skip
    for one in found:
        table.add_row(
            one.setting.label,
            str(one.places),
            f"{one.mean:+.3f}",
            f"{one.worst:+.3f}",
            f"{one.worst_at[0]} {one.worst_at[1]:.0%}",
            str(one.failures),
        )
    return table


def failures(summary: Summary) -> Table:
    """Every setting that is somewhere below plain magnitude by more than the noise."""
    table = _table(
        "below magnitude by more than the noise", "setting", "below at", "by", "noise there"
    )
    failing = sorted(
        (cell for cell in summary.cells if cell.fails),
        key=lambda cell: (cell.setting.label, cell.gain),
    )
    for label in dict.fromkeys(cell.setting.label for cell in failing):
        cells = [cell for cell in failing if cell.setting.label == label]
        table.add_row(
            label,
            ", ".join(f"{cell.network} {cell.sparsity:.0%}" for cell in cells),
            f"{-cells[0].gain:.3f}" + ("" if len(cells) == 1 else " at most"),
            f"{cells[0].noise:.3f}",
        )
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    return table
