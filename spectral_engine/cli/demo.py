"""`spectral-engine demo`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

#: Narrower, the table would lose its columns; a terminal can be widened.
TABLE_WIDTH = 80
NEXT = """What next:

  spectral-engine prune FOLDER -o PRUNED --recipe spectral --sparsity 0.5 \\
      --measure --report report.html
  spectral-engine compress PRUNED -o SMALL
  spectral-engine demo --all

FOLDER is a Hugging Face folder or a weight file of yours. In Python:
se.prune(model, "auto", 0.5), and better with calibration=batches of inputs."""


def demo(
    out: Annotated[Path, typer.Option(help="folder for the figures and the report")] = Path(
        "demo-out"
    ),
    every: Annotated[
        bool, typer.Option("--all", help="every method and law at six sparsities, as one table")
    ] = False,
    seed: Annotated[int, typer.Option(help="fixes all draws")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print the figures as JSON")] = False,
) -> None:
    """Prune a LeNet-300-100 trained on Fashion-MNIST in three ways, and show what is kept."""
    if every:
        _table(seed, as_json)
        return
    from spectral_engine._util.progress import Progress, reporting
    from spectral_engine.demo import story
    from spectral_engine.demo.plots import plot_accuracy, plot_spectrum

    out.mkdir(parents=True, exist_ok=True)
    with Console(stderr=True).status("compiling; the next run finds it done"):
        story.warm_up()
    told = story.Story(seed)
    rows: list[list[story.Outcome]] = []
    progress: Progress[str] = True
    with reporting(progress, "pruning", len(story.WAYS) * len(story.SPARSITIES)) as report:
        for way in story.WAYS:
            rows.append([])
            for sparsity in story.SPARSITIES:
                rows[-1].append(told.tell(way, sparsity))
                report(way.label)
    outcomes = [row[story.SPARSITIES.index(story.SPARSITY)] for row in rows]
    gains = told.gains(outcomes[-1])
    written = [
        plot_accuracy(rows, told.accuracy, out / "accuracy.png"),
        plot_spectrum(outcomes, told.values, out / "spectrum.png"),
        outcomes[-1].report.to_html(out / "report.html"),
    ]
    if as_json:
        found = {
            "dense": told.accuracy,
            "ways": [one.to_dict() for row in rows for one in row],
            "gains": [gain.to_dict() for gain in gains],
        }
        typer.echo(json.dumps(found))
        return
    typer.echo("\n".join(story.lines(told, outcomes, gains)))
    typer.echo(f"\nTo look at: {', '.join(map(str, written))}\n\n{NEXT}")


def _table(seed: int, as_json: bool) -> None:
    """Every method and law at six sparsities."""
    from spectral_engine._util.progress import Progress, reporting
    from spectral_engine.demo import run

    with Console(stderr=True).status("compiling; the next run finds it done"):
        run.warm_up(seed)
    settings = [(setting, sparsity) for sparsity in run.SPARSITIES for setting in run.SETTINGS]
    rows: list[run.DemoRow] = []
    progress: Progress[run.DemoRow] = True
    with reporting(progress, "pruning", len(settings)) as report:
        for setting, sparsity in settings:
            rows.append(run.measure(setting, sparsity, seed))
            report(rows[-1])
    dense = run.dense_accuracy()
    if as_json:
        typer.echo(json.dumps({"dense": dense, "rows": [row.to_dict() for row in rows]}))
        return
    console = Console()
    console.width = max(console.width, TABLE_WIDTH)
    console.print(run.table(rows, dense))
