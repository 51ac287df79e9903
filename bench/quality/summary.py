"""What the rows say: means over seeds, gains over magnitude, and where a setting falls below it.

Everything is compared within one network at one sparsity, by the network's first figure, with
magnitude at the same sparsity in every layer.
"""

import statistics
from collections import defaultdict
from dataclasses import dataclass, field

from bench.quality.grid import BASELINE, Setting
from bench.quality.run import Row

#: The least by which a setting must be below magnitude to count as failing.
LEAST_NOISE = 0.01


@dataclass(frozen=True)
class Cell:
    """One setting on one network at one sparsity; score, spread and seconds are over the seeds.

    `score` has the mean of each figure; `noise` is twice the standard deviation of the first, at
    least LEAST_NOISE; `gain` is the first figure less that of plain magnitude.
    """

    network: str
    setting: Setting
    sparsity: float
    seeds: int
    score: dict[str, float]
    noise: float
    gain: float
    reached: float
    seconds: float

    @property
    def value(self) -> float:
        """The figure that ranks."""
        return next(iter(self.score.values()))

    @property
    def fails(self) -> bool:
        """Whether it is below plain magnitude by more than the noise."""
        return self.gain < -self.noise


@dataclass
class Summary:
    """All cells, the dense networks and what was refused."""

    cells: list[Cell] = field(default_factory=list)
    dense: dict[str, dict[str, float]] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def places(self) -> list[tuple[str, float]]:
        """Each network and sparsity with a baseline, in the order of the networks' dense rows."""
        order = list(self.dense)
        found = {(cell.network, cell.sparsity) for cell in self.cells if cell.setting == BASELINE}
        return sorted(found, key=lambda place: (order.index(place[0]), place[1]))

    def at(self, network: str, sparsity: float) -> list[Cell]:
        """The cells of one place, the best first."""
        found = [c for c in self.cells if (c.network, c.sparsity) == (network, sparsity)]
        return sorted(found, key=lambda cell: -cell.value)


@dataclass(frozen=True)
class Standing:
    """One setting over all places where it was measured: mean gain, worst gain and where that is.

    failures counts the places where it is below magnitude by more than the noise.
    """

    setting: Setting
    places: int
    mean: float
    worst: float
    worst_at: tuple[str, float]
    failures: int


def summarise(rows: list[Row]) -> Summary:
    """Cells from rows; a place without a baseline is left out, since nothing is known of gains."""
    summary = Summary()
    groups: dict[tuple[str, str, float], list[Row]] = defaultdict(list)
    for row in rows:
        if row["label"] == "dense":
            summary.dense[row["network"]] = row["score"]
            summary.data[row["network"]] = row["data"]
        elif "refused" in row:
            summary.refused[f"{row['network']}: {row['label']}"] = row["refused"]
        else:
            groups[row["network"], row["label"], row["sparsity"]].append(row)
    for (network, _, sparsity), found in groups.items():
        base = groups.get((network, BASELINE.label, sparsity))
        if base is not None and network in summary.dense:
            summary.cells.append(_cell(found, _first(base[0])))
    return summary


def _cell(rows: list[Row], base: float) -> Cell:
    values = [_first(row) for row in rows]
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return Cell(
        network=rows[0]["network"],
        setting=Setting.read(rows[0]["label"]),
        sparsity=rows[0]["sparsity"],
        seeds=len(rows),
        score={
            name: statistics.fmean(row["score"][name] for row in rows) for name in rows[0]["score"]
        },
        noise=max(LEAST_NOISE, 2.0 * spread),
        gain=statistics.fmean(values) - base,
        reached=statistics.fmean(row["reached"] for row in rows),
        seconds=statistics.fmean(row["seconds"] for row in rows),
    )


def _first(row: Row) -> float:
    value: float = next(iter(row["score"].values()))
    return value


def standings(summary: Summary, calibrated: bool) -> list[Standing]:
    """Settings with or without calibration, the most widely measured and best on average first."""
    groups: dict[Setting, list[Cell]] = defaultdict(list)
    for cell in summary.cells:
        if cell.setting.calibrated == calibrated:
            groups[cell.setting].append(cell)
    found = []
    for setting, cells in groups.items():
        worst = min(cells, key=lambda cell: cell.gain)
        found.append(
            Standing(
                setting=setting,
                places=len(cells),
                mean=statistics.fmean(cell.gain for cell in cells),
                worst=worst.gain,
                worst_at=(worst.network, worst.sparsity),
                failures=sum(cell.fails for cell in cells),
            )
        )
    return sorted(found, key=lambda one: (-one.places, -one.mean))
