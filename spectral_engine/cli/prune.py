"""`spectral-engine prune IN -o OUT`."""

import json
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from spectral_engine.cli.names import PRESETS
from spectral_engine.cli.options import (
    AsJson,
    Ignore,
    ModelCard,
    ReportFile,
    Targets,
    require_card,
    require_report,
    show,
    size_of,
)


class Resume(StrEnum):
    """Whether to go on from an earlier run."""

    auto = "auto"
    required = "required"
    never = "never"


def _compress(output: Path, force: bool, dense: Path) -> None:
    from spectral_engine.compression.file import compress_file

    compress_file(dense, output, force=force)


def _tell(estimate: Any, dry_run: bool, as_json: bool) -> None:
    if dry_run and as_json:
        typer.echo(json.dumps(estimate.to_dict()))
    elif dry_run or not as_json:
        typer.echo(str(estimate), err=not dry_run)


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
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help=f"{', '.join(PRESETS)}; or a .toml file of recipes; if not given, magnitude, and "
            "with --calibration auto",
            autocompletion=lambda: list(PRESETS),
        ),
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option(help="fraction of zeros, in [0, 1); if not given, the recipe's, or 0.9"),
    ] = None,
    seed: Annotated[int, typer.Option(help="fixes all draws")] = 0,
    targets: Targets = None,
    ignore: Ignore = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='text, .jsonl with a "text" a line, or token ids (.npy, .safetensors): a '
            "language model's folder is calibrated on it, one block in memory",
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="of the calibration, at most")] = 128,
    length: Annotated[int, typer.Option(min=1, help="tokens of each sample")] = 2048,
    batch: Annotated[int, typer.Option(min=1, help="samples that run together")] = 1,
    max_memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="such as 2G: what a calibrated run may hold"),
    ] = None,
    resume: Annotated[
        Resume,
        typer.Option(help="of a run that ended early: go on from there, or start anew"),
    ] = Resume.auto,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="say what a calibrated run will take; do nothing")
    ] = False,
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
    from spectral_engine.cards.model_card import write_model_card
    from spectral_engine.distributed.groups import is_first
    from spectral_engine.distributed.launch import is_first_launched, is_launched, launched
    from spectral_engine.recipe.presets import recipe_of_text
    from spectral_engine.streaming.api import estimate_file, prune_into
    from spectral_engine.streaming.texts import token_batches

    require_report(report_file)
    require_card(model_card, source)
    chosen = recipe_of_text(recipe or ("magnitude" if calibration is None else "auto"))
    options: dict[str, Any] = {"targets": targets or None, "ignore": ignore or None}
    if calibration is not None:
        options["calibration"] = token_batches(source, calibration, samples, length, batch)
        if not is_launched() or is_first_launched():
            _tell(estimate_file(source, chosen, sparsity, **options), dry_run, as_json)
        options["max_memory"] = None if max_memory is None else size_of("max_memory", max_memory)
    elif dry_run:
        raise ValueError("dry_run: expected --calibration; without, a run takes little")
    if dry_run:
        return
    with launched():
        first = is_first()
        report = prune_into(
            source, output, chosen, sparsity, seed=seed, measure=measure, force=force,
            resume=resume.value, finish=partial(_compress, output, force) if compress else None,
            **options,
        )  # fmt: skip
    if not first:
        return
    if model_card:
        write_model_card(output, report)
    show(report, report_file, as_json, output=str(output))
    if not as_json:
        typer.echo(f"wrote {output}")
