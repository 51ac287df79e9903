"""`spectral-engine spectrum FILE`."""

from pathlib import Path
from typing import Annotated

import typer

from spectral_engine.cli.options import (
    AsJson,
    Ignore,
    ReportFile,
    Targets,
    require_report,
    require_writable,
    show,
)

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
    report_file: ReportFile = None,
    as_json: AsJson = False,
) -> None:
    """Singular values, norms, ranks and tails of every weight in a file or folder."""
    from spectral_engine.spectral.api import spectra

    if plot is not None:
        require_writable(plot, image=True)
    require_report(report_file)
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
    show(table, report_file, as_json)
    if plot is not None and not as_json:
        typer.echo(f"wrote {plot}")
