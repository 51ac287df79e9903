"""`spectral-engine reproduce TASK`."""

import importlib
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from spectral_engine.cli.names import FASHION_MNIST

TASK_HELP = (
    "learning, oneshot, iterative; depth, width, optimizer, recurrent, transformer, headtohead, "
    "rewinding, failures, efficientnet"
)


def reproduce(
    task: Annotated[str, typer.Argument(metavar="TASK", help=TASK_HELP)],
    network: Annotated[
        str,
        typer.Option(help="lenet-300-100, lenet-5, vgg19, vgg19-bn, mlp, lstm, gru, transformer"),
    ] = "lenet-300-100",
    data: Annotated[
        Path,
        typer.Option(
            help="folder with the idx files of Fashion-MNIST, or of the like; of efficientnet, "
            "with packages installed by pip --target"
        ),
    ] = Path(FASHION_MNIST),
    out: Annotated[Path | None, typer.Option(help="folder for JSON, table and figures")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="folder for checkpoints, from which a run goes on")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="runs; 5, of VGG19 3")] = None,
    epochs: Annotated[int | None, typer.Option(help="of the dense training")] = None,
    width: Annotated[float, typer.Option(help="of the layers, relative to the original's")] = 1.0,
    subset: Annotated[int | None, typer.Option(help="train on so many images only")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    workers: Annotated[
        int | None, typer.Option(help="runs side by side; the cores, on a GPU 1")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="a small trial of all its parts")] = False,
) -> None:
    """Run a task of the paper (arXiv 2307.08982): train, prune, measure.

    Results go to bench/results/paper. Works from a checkout of the project. A run that was stopped
    goes on where it was, with the same result.
    """
    from spectral_engine.profiling.device import pick_device

    device = pick_device(device)
    tasks = _bench("bench.paper.reproduce")
    given: dict[str, Any] = {"out": out, "cache": cache}
    settings = _bench("bench.paper.runs.jobs").Settings(
        network=network,
        data=data,
        seeds=seeds,
        epochs=epochs,
        width=width,
        subset=subset,
        quick=quick,
        device=device,
        workers=workers or (1 if device != "cpu" else os.cpu_count() or 1),
        **{name: value for name, value in given.items() if value is not None},
    )
    result, written = tasks.reproduce(task, settings)
    for table in result.tables:
        typer.echo(table.markdown())
    for path in written:
        typer.echo(f"wrote {path}")


def _bench(name: str) -> Any:
    """A module of the checkout's bench/, which is no part of the installed package."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise ModuleNotFoundError(
            "reproduce runs from a checkout of the project: clone its repository, run `make "
            "install` there, and use .venv/bin/spectral-engine",
            name=error.name,
        ) from error
