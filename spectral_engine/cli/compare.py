"""`spectral-engine compare DENSE PRUNED`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from spectral_engine.cli.options import AsJson, Ignore, Targets
from spectral_engine.spectral import compare as comparison


def compare(
    dense: Annotated[
        Path, typer.Argument(metavar="DENSE", help=".safetensors, .pt, .bin, .npz or a folder")
    ],
    pruned: Annotated[
        Path, typer.Argument(metavar="PRUNED", help="a checkpoint of the same weights")
    ],
    rank: Annotated[int, typer.Option(help="leading values and vectors compared")] = 64,
    targets: Targets = None,
    ignore: Ignore = None,
    as_json: AsJson = False,
) -> None:
    """How far pruning moved each weight: its norms, singular values and leading subspaces."""
    errors = Console(stderr=True)
    with errors.status(escape(f"reading {dense}")) as status:
        found = comparison.compare(
            dense,
            pruned,
            rank,
            targets=targets or None,
            ignore=ignore or None,
            progress=lambda row: status.update(escape(f"compared {row.name}")),
        )
    typer.echo(json.dumps(found.to_dict()) if as_json else str(found))
