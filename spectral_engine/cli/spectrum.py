"""`spectral-engine spectrum FILE`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from spectral_engine._util.text import plain_text
from spectral_engine.cli.options import AsJson, Ignore, Targets, require_writable
from spectral_engine.spectral.api import spectra

#: Narrower, the table would lose its columns; a terminal can be widened.
TABLE_WIDTH = 132
#: Tensors that take more working memory than this are in memory one at a time.
MAX_BYTES = 1 << 28


def spectrum(
    source: Annotated[
        Path, typer.Argument(metavar="FILE", help=".safetensors, .pt, .bin, .npz or a folder")
    ],
    rank: Annotated[int, typer.Option(help="leading singular values of each weight")] = 64,
    tolerance: Annotated[float, typer.Option(help="relative accuracy of the values")] = 1e-3,
    plot: Annotated[Path | None, typer.Option(help="draw the spectra to this image file")] = None,
    full: Annotated[
        bool, typer.Option("--full", help="whole spectra, to rounding, whatever it takes")
    ] = False,
    targets: Targets = None,
    ignore: Ignore = None,
    as_json: AsJson = False,
) -> None:
    """Singular values, norms, ranks and tails of every weight in a file or folder."""
    if plot is not None:
        require_writable(plot, image=True)
    table = spectra(
        source,
        rank,
        tolerance=tolerance,
        max_bytes=MAX_BYTES,
        full=True if full else "auto",
        targets=targets or None,
        ignore=ignore or None,
    )
    if plot is not None:
        table.plot(plot)
    if as_json:
        typer.echo(json.dumps(table.to_dict()))
        return
    console = Console()
    console.width = max(console.width, TABLE_WIDTH)
    console.print(table.table())
    for skipped in table.skipped:
        console.print(plain_text(f"no spectrum: {skipped.name}, {skipped.reason}"))
    if plot is not None:
        typer.echo(f"wrote {plot}")
