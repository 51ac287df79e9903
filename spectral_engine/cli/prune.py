"""`spectral-engine prune IN -o OUT`."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from spectral_engine.cards.model_card import write_model_card
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
from spectral_engine.compression.file import compressing
from spectral_engine.pruning.file import prune_file
from spectral_engine.recipe.presets import PRESETS, recipe_of_text


def prune(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN", help="a .safetensors, .pt, .pth, .bin, .ckpt or .npz file, or a folder"
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            help="a folder for a folder; a file of IN's format, or .safetensors",
        ),
    ],
    recipe: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE",
            help=f"{', '.join(PRESETS)}; or a .toml file of recipes",
            autocompletion=lambda: list(PRESETS),
        ),
    ] = "magnitude",
    sparsity: Annotated[
        float | None,
        typer.Option(help="fraction of zeros, in [0, 1); if not given, the recipe's, or 0.9"),
    ] = None,
    seed: Annotated[int, typer.Option(help="fixes all draws")] = 0,
    targets: Targets = None,
    ignore: Ignore = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="compare spectra before and after; takes longer")
    ] = False,
    compress: Annotated[
        bool, typer.Option("--compress", help="write OUT without its zeros, as compress does")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="replace an existing OUT")] = False,
    report_file: ReportFile = None,
    model_card: ModelCard = False,
    as_json: AsJson = False,
) -> None:
    """Prune a weight file or a Hugging Face style folder; its dtypes and metadata are kept."""
    require_report(report_file)
    require_card(model_card, source)
    chosen = recipe_of_text(recipe)
    with compressing(output, force=force) if compress else nullcontext(output) as target:
        report = prune_file(
            source,
            target,
            chosen,
            sparsity,
            targets=targets or None,
            ignore=ignore or None,
            seed=seed,
            measure=measure,
            force=force,
        )
    if model_card:
        write_model_card(output, report)
    show(report, report_file, as_json, output=str(output))
    if not as_json:
        typer.echo(f"wrote {output}")
