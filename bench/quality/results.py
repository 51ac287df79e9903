"""The summary as files that lie in bench/results: a tidy CSV, its tables, and a figure.

The tables and the figure are made of what the CSV holds, so that they can be made again from it.
"""

import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path

from bench import tidy
from bench.quality.grid import BASELINE, Setting
from bench.quality.plot import draw
from bench.quality.summary import LEAST_NOISE, Cell, Summary
from bench.quality.table import tables
from bench.tidy import Row
from spectral_engine.checkpoints.atomic import replacing_file

DENSE = "dense"
#: A sparsity that is missed by less than this has no line of its own.
REACHED = 0.005
#: How names in the head begin: of a network's data, and of what was refused, which is numbered.
DATA, REFUSED = "data of ", "refused "
NOTES = {
    "values": f"means over seeds; seeds: one where no line says more; noise: {LEAST_NOISE:g} where "
    "no line says more; reached: the sparsity asked for where no line says otherwise; seconds: of "
    "pruning, over the sparsities",
    "left out": "the figures of each network after its first, dense apart",
}


def numbers(summary: Summary) -> Iterator[Row]:
    """The rows of the CSV; a variant is a network."""
    for network, score in summary.dense.items():
        for metric, value in score.items():
            yield Row(network, None, DENSE, None, metric, value)
    seconds: dict[tuple[str, str], list[float]] = {}
    for cell in summary.cells:
        label = cell.setting.label
        place = (cell.network, None, label, cell.sparsity)
        yield Row(*place, next(iter(cell.score)), cell.value)
        if cell.noise > LEAST_NOISE:
            yield Row(*place, "noise", cell.noise)
        if cell.seeds > 1:
            yield Row(*place, "seeds", cell.seeds)
        if abs(cell.reached - cell.sparsity) >= REACHED:
            yield Row(*place, "reached", cell.reached)
        seconds.setdefault((cell.network, label), []).append(cell.seconds)
    for (network, label), found in seconds.items():
        yield Row(network, None, label, None, "seconds", statistics.fmean(found))


def write(summary: Summary, folder: Path, head: Mapping[str, str]) -> list[Path]:
    """quality.csv, quality.md and quality.png; the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"quality.{ending}" for ending in ("csv", "md", "png")]
    data = {f"{DATA}{network}": said for network, said in summary.data.items()}
    refused = {
        f"{REFUSED}{place}": f"{label}: {' '.join(reason.split())}"
        for place, (label, reason) in enumerate(summary.refused.items(), 1)
    }
    tidy.write(paths[0], numbers(summary), {"task": "quality", **head, **data, **NOTES, **refused})
    found = read(paths[0])
    with replacing_file(paths[1], force=True) as file:
        file.write(markdown(found).encode())
    draw(found, paths[2])
    return paths


def markdown(summary: Summary) -> str:
    """All tables."""
    return "\n".join(["## quality\n", *(table.markdown() for table in tables(summary))])


def read(path: Path) -> Summary:
    """The summary that a quality.csv holds: of each cell the first figure alone."""
    head, rows = tidy.read(path)
    summary = Summary(
        data={name.removeprefix(DATA): said for name, said in head.items() if name.startswith(DATA)}
    )
    for name, said in head.items():
        if name.startswith(REFUSED):
            network, label, reason = said.split(": ", 2)
            summary.refused[f"{network}: {label}"] = reason
    records = tidy.records(rows)
    for record in records:
        if record["setting"] == DENSE:
            summary.dense[record["variant"]] = {
                name: value for name, value in record.items() if name not in Row._fields
            }
    first = {network: next(iter(score)) for network, score in summary.dense.items()}
    seconds = {
        (record["variant"], record["setting"]): record["seconds"]
        for record in records
        if "seconds" in record
    }
    measured = [
        record
        for record in records
        if record["sparsity"] is not None and record["setting"] != DENSE
    ]
    base = {
        (record["variant"], record["sparsity"]): record[first[record["variant"]]]
        for record in measured
        if record["setting"] == BASELINE.label
    }
    for record in measured:
        network, sparsity = record["variant"], record["sparsity"]
        value = record[first[network]]
        summary.cells.append(
            Cell(
                network=network,
                setting=Setting.read(record["setting"]),
                sparsity=sparsity,
                seeds=record.get("seeds", 1),
                score={first[network]: value},
                noise=record.get("noise", LEAST_NOISE),
                gain=value - base[network, sparsity],
                reached=record.get("reached", sparsity),
                seconds=seconds[network, record["setting"]],
            )
        )
    return summary
