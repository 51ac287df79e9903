"""The summary as tables."""

from collections.abc import Iterator

from bench.quality.grid import BASELINE
from bench.quality.summary import Standing, Summary, standings
from bench.tables import Table


def tables(summary: Summary, shown: int = 12) -> Iterator[Table]:
    """What wins where, how settings stand overall, then every failure and refusal."""
    yield winners(summary)
    for calibrated in (False, True):
        found = standings(summary, calibrated)
        if found:
            yield overall(found[:shown], calibrated)
    yield failures(summary)
    if summary.refused:
        yield Table(
            "refused by prune", ("network and setting", "why"), list(summary.refused.items())
        )


def winners(summary: Summary) -> Table:
    """Plain magnitude, the best data-free and the best calibrated setting of each place."""
    table = Table(
        "what wins where",
        ("network", "zeros", "dense", "magnitude", "best without data", "setting",
         "best calibrated", "setting"),
    )  # fmt: skip
    previous = ""
    for network, sparsity in summary.places:
        cells = summary.at(network, sparsity)
        base = next(cell for cell in cells if cell.setting == BASELINE)
        best = [
            next((c for c in cells if c.setting.calibrated == calibrated), None)
            for calibrated in (False, True)
        ]
        dense, metric = next(iter(summary.dense[network].values())), next(iter(base.score))
        table.rows.append(
            (
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
        )
        previous = network
    return table


def overall(found: list[Standing], calibrated: bool) -> Table:
    """Mean and worst gain over plain magnitude."""
    kind = "with calibration" if calibrated else "without data"
    table = Table(
        f"gain over magnitude {kind}: the best on average",
        ("setting", "places", "mean", "worst", "where", "below magnitude in"),
    )
    for one in found:
        table.rows.append(
            (
                one.setting.label,
                str(one.places),
                f"{one.mean:+.3f}",
                f"{one.worst:+.3f}",
                f"{one.worst_at[0]} {one.worst_at[1]:.0%}",
                str(one.failures),
            )
        )
    return table


def failures(summary: Summary) -> Table:
    """Every setting that is somewhere below plain magnitude by more than the noise."""
    table = Table(
        "below magnitude by more than the noise", ("setting", "below at", "by", "noise there")
    )
    failing = sorted(
        (cell for cell in summary.cells if cell.fails),
        key=lambda cell: (cell.setting.label, cell.gain),
    )
    for label in dict.fromkeys(cell.setting.label for cell in failing):
        cells = [cell for cell in failing if cell.setting.label == label]
        table.rows.append(
            (
                label,
                ", ".join(f"{cell.network} {cell.sparsity:.0%}" for cell in cells),
                f"{-cells[0].gain:.3f}" + ("" if len(cells) == 1 else " at most"),
                f"{cells[0].noise:.3f}",
            )
        )
    return table
