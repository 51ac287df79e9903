"""`spectral-engine prune IN -o OUT`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from spectral_engine.files import prune_file
from spectral_engine.report import LayerReport


def prune(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help=".safetensors, .pt, .bin, .npz or a folder")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="what to write")],
    method: Annotated[
        str, typer.Option(help="magnitude, randomized, principal or aligned")
    ] = "magnitude",
    sparsity: Annotated[float, typer.Option(help="fraction of zeros, in [0, 1)")] = 0.9,
    rank: Annotated[int | None, typer.Option(help="rank of principal and aligned scores")] = None,
    law: Annotated[
        str | None, typer.Option(help="threshold, l1, l2, hybrid, row-l1, bernstein, am07, ...")
    ] = None,
    group: Annotated[str, typer.Option(help="tensor, or row for equal sparsity by row")] = "tensor",
    refit: Annotated[str | None, typer.Option(help="scale: restore the largest value")] = None,
    seed: Annotated[int, typer.Option(help="fixes all draws")] = 0,
    targets: Annotated[
        list[str] | None, typer.Option(help="prune only these: globs or 're:...'; repeatable")
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(help="leave these alone: globs or 're:...'; repeatable")
    ] = None,
    measure: Annotated[bool, typer.Option(help="compare spectra before and after")] = False,
    force: Annotated[bool, typer.Option(help="replace an existing OUT")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON for machines")] = False,
) -> None:
    """Prune a weight file or a Hugging Face style folder; its dtypes and metadata are kept."""
    errors = Console(stderr=True)

    def show(row: LayerReport) -> None:
        status.update(f"pruned {row.name}")

    with errors.status(f"reading {source}") as status:
        report = prune_file(
            source,
            output,
            method,
            sparsity,
            targets=targets or None,
            ignore=ignore or None,
            rank=rank,
            law=law,
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
        typer.echo(str(report))
        typer.echo(f"wrote {output}")
