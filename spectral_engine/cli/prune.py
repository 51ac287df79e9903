"""`spectral-engine prune IN -o OUT`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from spectral_kernels import LAW_NAMES

from spectral_engine.pruning.allocation import ALLOCATIONS
from spectral_engine.pruning.file import prune_file
from spectral_engine.pruning.report import LayerReport
from spectral_engine.recipe.legacy import PRESETS


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
    method: Annotated[str, typer.Option(help=f"{', '.join(PRESETS)}")] = "magnitude",
    sparsity: Annotated[
        float | None,
        typer.Option(help="fraction of zeros, in [0, 1); if not given, 0.9 or the pattern's"),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(help="rank of principal and aligned scores; if not given, half of min(m, n)"),
    ] = None,
    law: Annotated[
        str | None, typer.Option(help=f"instead of the method's own: {', '.join(LAW_NAMES)}")
    ] = None,
    law_parameter: Annotated[
        float | None, typer.Option(help="alpha of law hybrid, or kappa of am07")
    ] = None,
    rescale: Annotated[
        bool | None,
        typer.Option(
            "--rescale/--no-rescale", help="divide what is drawn by its probability, or not"
        ),
    ] = None,
    mixture: Annotated[
        float | None, typer.Option(help="of principal, the magnitude's share in the score")
    ] = None,
    group: Annotated[str, typer.Option(help="tensor, or row for equal sparsity by row")] = "tensor",
    pattern: Annotated[
        str | None,
        typer.Option(help="N:M, such as 2:4, in each row; or blocks, such as 16x16"),
    ] = None,
    allocation: Annotated[
        str, typer.Option(help=f"how tensors share the budget: {', '.join(ALLOCATIONS)}")
    ] = "uniform",
    floor: Annotated[
        float | None,
        typer.Option(help="least density of a tensor; if not given, a tenth of the mean"),
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option(help="instead of a sparsity: the largest relative Frobenius error"),
    ] = None,
    refit: Annotated[
        str | None,
        typer.Option(
            help="scale: restore the largest singular value; spectral: refit to leading ones"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="fixes all draws")] = 0,
    targets: Annotated[
        list[str] | None,
        typer.Option(help="prune only tensors so named: a glob or 're:...'; repeatable"),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(help="leave tensors so named alone: a glob or 're:...'; repeatable"),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="compare spectra before and after; takes longer")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="replace an existing OUT")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the report as JSON")] = False,
) -> None:
    """Prune a weight file or a Hugging Face style folder; its dtypes and metadata are kept."""
    errors = Console(stderr=True)

    def show(row: LayerReport) -> None:
        status.update(escape(f"pruned {row.name}"))

    with errors.status(escape(f"reading {source}")) as status:
        report = prune_file(
            source,
            output,
            method,
            sparsity,
            targets=targets or None,
            ignore=ignore or None,
            rank=rank,
            law=law,
            law_parameter=law_parameter,
            rescale=rescale,
            mixture=mixture,
            pattern=pattern,
            allocation=allocation,
            floor=floor,
            max_error=max_error,
            refit=refit,
            seed=seed,
            group=group,
            measure=measure,
            force=force,
            progress=show,
        )
    if as_json:
        typer.echo(json.dumps({"output": str(output), **report.to_dict()}))
    else:
        console = Console()
        if not console.is_terminal:
            console.width = max(console.width, 120)  # a log, where a row should stay a line
        console.print(report)
        typer.echo(f"wrote {output}")
