"""`spectral-engine compress IN -o OUT` and `spectral-engine decompress IN -o OUT`."""

from pathlib import Path
from typing import Annotated

import typer

from spectral_engine.cli.options import (
    AsJson,
    Ignore,
    ModelCard,
    ReportFile,
    Targets,
    require_card,
    require_report,
    show,
)

Force = Annotated[bool, typer.Option("--force", help="replace an existing OUT")]
Output = Annotated[
    Path,
    typer.Option("--output", "-o", metavar="OUT", help="a folder for a folder, or .safetensors"),
]


def compress(
    source: Annotated[
        Path,
        typer.Argument(metavar="IN", help="a pruned .safetensors, .pt, .bin, .npz, or a folder"),
    ],
    output: Output,
    targets: Targets = None,
    ignore: Ignore = None,
    force: Force = False,
    report_file: ReportFile = None,
    model_card: ModelCard = False,
    as_json: AsJson = False,
) -> None:
    """Write a pruned weight file or Hugging Face folder without its zeros; values stay the same."""
    from spectral_engine.cards.model_card import write_model_card
    from spectral_engine.compression import file as files

    require_report(report_file)
    require_card(model_card, source)
    report = files.compress_file(
        source, output, targets=targets or None, ignore=ignore or None, force=force, progress=True
    )
    if model_card:
        write_model_card(output, report)
    show(report, report_file, as_json, output=str(output))
    if not as_json:
        if not report.weights:
            typer.echo("nothing was compressed: is IN pruned? `spectral-engine prune` comes first")
        typer.echo(f"wrote {output}, {report.ratio:.1%} of the dense weights")


def decompress(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="a compressed .safetensors file, or a folder")
    ],
    output: Output,
    force: Force = False,
) -> None:
    """Write a compressed weight file or folder with its zeros, as it was before."""
    from spectral_engine.compression import file as files

    files.decompress_file(source, output, force=force)
    typer.echo(f"wrote {output}")
