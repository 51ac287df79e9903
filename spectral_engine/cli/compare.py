"""`spectral-engine compare DENSE PRUNED`."""

from pathlib import Path
from typing import Annotated

import typer

from spectral_engine.cli.options import AsJson, Ignore, ReportFile, Targets, require_report, show


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
    report_file: ReportFile = None,
    as_json: AsJson = False,
) -> None:
    """How far pruning moved each weight: its norms, singular values and leading subspaces."""
    from spectral_engine.spectral import compare as comparison

    require_report(report_file)
    found = comparison.compare(dense, pruned, rank, targets=targets or None, ignore=ignore or None)
    show(found, report_file, as_json)
