"""`spectral-engine profile --scale`: what a large folder takes, as a table."""

import json
from dataclasses import asdict
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

LLAMAS = ("llama-7b", "llama-70b", "llama-405b")


def show_scale(model: str | None, samples: int, length: int, as_json: bool) -> None:
    """Print the table, or JSON with the rates that it is computed from."""
    from spectral_engine.profiling.scale import H100, rates_here, scale_rows, shapes_of_config
    from spectral_engine.profiling.shapes import MODELS

    if model is not None and not model.startswith("llama-"):
        if not Path(model).exists():
            raise ValueError(f"model: expected {', '.join(LLAMAS)} or a config.json; got {model!r}")
        models = [shapes_of_config(Path(model))]
    else:
        models = [MODELS[name] for name in (LLAMAS if model is None else (model,))]
    here = rates_here(models[0].dtype)
    rows = [row for one in models for row in scale_rows(one, samples, length, [here, H100])]
    if as_json:
        told = {"rates": [asdict(here), asdict(H100)], "rows": [asdict(row) for row in rows]}
        typer.echo(json.dumps(told))
        return
    table = Table(title=f"{samples} sequences of {length:,} tokens", title_justify="left")
    for name in ("model", "recipe"):
        table.add_column(name)
    for name in ("processes", "memory each", "disk", "traffic each", "CPU", "H100"):
        table.add_column(name, justify="right")
    for row in rows:
        hours = [_duration(row.seconds[name]) for name in (here.name, H100.name)]
        sizes = [f"{size / 1e9:,.1f} GB" for size in (row.memory, row.disk, row.traffic)]
        table.add_row(row.model, row.recipe, str(row.processes), *sizes, *hours)
    console = Console()
    console.width = max(console.width, 100)
    console.print(table)
    typer.echo(
        f"CPU: measured here, one thread a process: {here.forward / 1e9:,.0f} GFLOP/s forward in "
        f"{models[0].dtype}, {here.moments / 1e9:,.0f} of moments, {here.solving / 1e9:,.0f} of "
        f"solving, {here.entries / 1e6:,.0f} million entries/s; disk 0.5 GB/s and network 1 GB/s "
        "assumed. H100: computed from its data sheet, not measured; blocks of a folder run on the "
        "CPU today"
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 5400 else f"{seconds / 3600:,.0f} h"
