"""`spectral-engine demo`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from spectral_engine._util.progress import Progress, reporting
from spectral_engine.demo.run import (
    SETTINGS,
    SPARSITIES,
    DemoRow,
    dense_accuracy,
    measure,
    table,
    warm_up,
)

#: Narrower, the table would lose its columns; a terminal can be widened.
TABLE_WIDTH = 80


def demo(
    out: Annotated[Path, typer.Option(help="folder for the plots")] = Path("demo-out"),
    seed: Annotated[int, typer.Option(help="fixes all draws")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print the table as JSON")] = False,
) -> None:
    """Prune a LeNet-300-100 trained on Fashion-MNIST with every preset and law."""
    from spectral_engine.demo.plots import plot_accuracy, plot_spectra  # noqa: PLC0415 (Matplotlib)

    messages = Console(stderr=True)
    out.mkdir(parents=True, exist_ok=True)
    with messages.status("compiling; the next run finds it done"):
        warm_up(seed)
    settings = [(setting, sparsity) for sparsity in SPARSITIES for setting in SETTINGS]
    rows: list[DemoRow] = []
    progress: Progress[DemoRow] = True
    with reporting(progress, "pruning", len(settings)) as report:
        for setting, sparsity in settings:
            rows.append(measure(setting, sparsity, seed))
            report(rows[-1])
    dense = dense_accuracy()
    written = [
        plot_accuracy(rows, dense, out / "accuracy.png"),
        plot_spectra(rows, 0.9, out / "singular_values.png"),
    ]
    if as_json:
        typer.echo(json.dumps({"dense": dense, "rows": [row.to_dict() for row in rows]}))
        return
    console = Console()
    console.width = max(console.width, TABLE_WIDTH)
    console.print(table(rows, dense))
    for path in written:
        typer.echo(f"wrote {path}")
