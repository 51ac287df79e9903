"""A folder's model made ready to be pruned where it lies: built without weights, and planned."""

import importlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spectral_engine.calibration.batches import held
from spectral_engine.calibration.request import Calibration
from spectral_engine.checkpoints import Checkpoint, model_config
from spectral_engine.layers.architecture import model_of_folder
from spectral_engine.layers.find import Layer
from spectral_engine.pruning.plan import plan_model
from spectral_engine.recipe.recipe import Recipe
from spectral_engine.streaming.files.weights import FileWeights, compute_dtype
from spectral_engine.streaming.pieces import IN_MEMORY
from spectral_engine.streaming.run import Streaming


def streaming_of(
    checkpoint: Checkpoint,
    recipes: Callable[[nn.Module], Sequence[Recipe]],
    calibration: Calibration,
    *,
    targets: Any,
    ignore: Any,
    seed: int,
    measure: bool,
    max_memory: int | None,
) -> Streaming:
    """The model of an open folder, with the plan of its pruning; no weight is read but for budgets.

    Args:
        checkpoint: a folder whose config.json names an architecture that transformers knows.
        recipes: gives those of the run, once the model is known. calibration: of the run.
        targets, ignore, seed, measure, max_memory: as for `prune_file`.

    Raises:
        ValueError: the folder's model is not known, is quantised, or has no blocks; names it, and
            the way in memory. Or the recipes select nothing.
        ModuleNotFoundError: transformers is not installed.
    """
    path = checkpoint.path
    config = model_config(path)
    if config.quantisation is not None:
        raise ValueError(
            f"{path}: expected plain weights to calibrate; found {config.quantisation} quantisation"
        )
    if calibration.asymmetric:
        raise ValueError(
            "asymmetric: a second, dense model would run beside the blocks in memory; expected "
            f"False for a folder. {IN_MEMORY}"
        )
    model, said = model_of_folder(path, config, runs_in=compute_dtype(checkpoint))
    if model is None:
        if not _has_transformers():
            raise ModuleNotFoundError(
                f"calibration: {said}; pip install transformers, or load the model and prune it in "
                "memory: se.prune(model, recipe, calibration=batches)"
            )
        raise ValueError(f"calibration: {path}: {said}. {IN_MEMORY}")
    return streaming_model(
        model, checkpoint, recipes(model), calibration, targets=targets, ignore=ignore, seed=seed,
        measure=measure, max_memory=max_memory,
    )  # fmt: skip


def streaming_model(
    model: Any,
    checkpoint: Checkpoint,
    recipes: Sequence[Recipe],
    calibration: Calibration,
    *,
    targets: Any = None,
    ignore: Any = None,
    seed: int = 0,
    measure: bool = False,
    max_memory: int | None = None,
) -> Streaming:
    """As `streaming_of`, for a model that is there, its parameters on the meta device.

    Raises:
        ValueError: the model has no blocks, a block has no weights, or the recipes select nothing.
    """
    weights = FileWeights(checkpoint, model)
    plan = plan_model(model, recipes, targets, ignore, partial(load_layer, weights))
    batches = list(held(calibration.batches))
    own = Calibration(
        batches, forward=calibration.forward, positions=calibration.positions,
        max_samples=calibration.max_samples, sequential=calibration.sequential is not False,
        max_bytes=calibration.max_bytes,
    )  # fmt: skip
    return Streaming(model, weights, plan, own, seed, measure, max_memory)


def load_layer(weights: FileWeights, layer: Layer) -> torch.Tensor:
    """A layer's matrices, read from the files."""
    name = layer.name.partition("[")[0]
    return layer.as_matrices(weights.read([name])[name])


def versions() -> dict[str, str]:
    """Of the packages, beside torch and NumPy, that a run of a folder's model depends on."""
    found = {}
    for name in ("spectral-engine", "transformers", "numba"):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def folder_of(path: Path) -> Path:
    """The path itself, if it is a folder.

    Raises:
        ValueError: it is a file, which does not say how its model runs.
    """
    if not path.is_dir():
        raise ValueError(
            f"calibration: expected a Hugging Face folder, whose config.json says how the model "
            f"runs; got the file {path}. {IN_MEMORY}"
        )
    return path


def _has_transformers() -> bool:
    try:
        importlib.import_module("transformers")
    except ModuleNotFoundError:
        return False
    return True
