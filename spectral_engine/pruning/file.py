"""Prune a checkpoint on disk, one tensor in memory at a time."""

import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from spectral_engine._util.checks import boolean, integer
from spectral_engine._util.globs import matches
from spectral_engine._util.progress import Progress, check_progress, reporting
from spectral_engine.checkpoints import Checkpoint, open_checkpoint, rewrite
from spectral_engine.layers.find import Skipped
from spectral_engine.layers.selector import RecipeSelector
from spectral_engine.pruning.plan import Candidate, Plan, share_out
from spectral_engine.pruning.report import LayerReport, PruneReport, layer_report
from spectral_engine.recipe.methods import Method
from spectral_engine.recipe.presets import as_recipes
from spectral_engine.recipe.recipe import Recipe
from spectral_engine.sparsifying.stacks import sparsify_layer

#: A file does not tell an embedding from a linear layer; these names do, and are left alone
#: unless `targets` asks for them.
EMBEDDINGS = ("*embed*", "*wte.weight", "*wpe.weight")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def prune_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    recipe: Recipe | Method | str | Sequence[Recipe] = "magnitude",
    sparsity: float | None = None,
    *,
    targets: str | Iterable[str] | None = None,
    ignore: str | Iterable[str] | None = None,
    seed: int = 0,
    measure: bool = False,
    force: bool = False,
    progress: Progress[LayerReport] = True,
) -> PruneReport:
    """Write a pruned copy of a weight file or a Hugging Face style folder.

    Every tensor with two or more dimensions is pruned, embeddings (by their names) only where
    `targets` names them. Order, dtypes, metadata and all other files stay as they are; the target
    appears whole or not at all. A budget that layers share by what is in them reads every tensor
    twice.

    Args:
        source: .safetensors, .pt, .pth, .bin, .npz or a folder; no code of a pickle is run.
        target: a file of the same format or .safetensors; a folder for a folder.
        recipe, sparsity, seed, measure, progress: as for `prune`; a recipe that needs calibration
            inputs is refused.
        targets, ignore: globs over tensor names, with or without ".weight", or "re:...".
        force: replace an existing target.

    Returns:
        What was done to each tensor, what was left alone and why.

    Raises:
        TypeError, ValueError, OSError: name what was wrong; nothing is left half-written.

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> torch.save({"a.weight": torch.randn(8, 6)}, folder / "dense.pt")
        >>> report = prune_file(folder / "dense.pt", folder / "pruned.pt", "magnitude", 0.75)
        >>> report.nnz, report.size
        (12, 48)
    """
    start = time.perf_counter()
    for name, value in (("measure", measure), ("force", force)):
        boolean(name, value)
    integer("seed", seed, least=0, most=2**64 - 1)
    check_progress(progress)
    recipes = as_recipes(recipe, sparsity)
    with open_checkpoint(source) as checkpoint:
        plan = plan_checkpoint(checkpoint, recipes, targets, ignore)
        report = PruneReport(
            recipes, plan.requested, seed, skipped=[*plan.skipped], unmatched=[*plan.unmatched]
        )
        with reporting(progress, "pruning", len(plan.assigned)) as show:

            def transform(name: str, weight: torch.Tensor) -> torch.Tensor:
                pruned, row = _pruned(plan, name, weight, seed, measure, str(source))
                report.layers.append(row)
                show(row)
                return pruned

            rewrite(checkpoint, target, transform, select=plan.assigned, force=force)
    report.seconds = time.perf_counter() - start
    return report


@dataclass(frozen=True)
class FilePlan(Plan):
    """The plan for a checkpoint; `shared_with` are the other names of a tensor's memory."""

    shared_with: Mapping[str, tuple[str, ...]]


def plan_checkpoint(
    checkpoint: Checkpoint, recipes: Sequence[Recipe], targets: Any = None, ignore: Any = None
) -> FilePlan:
    """The plan for an open checkpoint; nothing is read but what the budget needs.

    Tensors of fewer than two dimensions are not spoken of.

    Raises:
        TypeError, ValueError: name the argument or the tensor, what was expected and what came.
    """
    selector = RecipeSelector(recipes, targets, ignore)
    candidates: list[Candidate] = []
    shared_with: dict[str, tuple[str, ...]] = {}
    skipped = []
    for first, names in _by_memory(checkpoint).items():
        called = [*names, *(name.removesuffix(".weight") for name in names)]
        opt_in = "looks like an embedding" if any(map(_looks_like_embedding, names)) else ""
        reason = selector.reason_against(called, opt_in=opt_in)
        shape = checkpoint.shape(first)
        if checkpoint.dtype(first) not in _DTYPES:
            reason = f"{str(checkpoint.dtype(first)).removeprefix('torch.')} is not pruned"
        elif math.prod(shape) == 0:
            reason = "empty"
        reason = checkpoint.reason_to_keep(first) or reason
        if reason is not None:
            skipped.append(Skipped(first, reason))
            continue
        shared_with[first] = tuple(names[1:])
        index = selector.recipe_of(called, opt_in=opt_in)
        matrix = (shape[0], math.prod(shape[1:]))
        load = partial(checkpoint.read, first)
        candidates.append(Candidate(first, load, shape, matrix, 1, index))
    skipped += [Skipped(name, reason) for name, reason in checkpoint.other_weights().items()]
    if not candidates:
        raise ValueError(
            f"targets: nothing to prune in {checkpoint.path} with {selector}; expected globs or "
            "'re:...' over tensor names (a file knows no class names)"
        )
    assigned, requested = share_out(recipes, candidates, str(checkpoint.path))
    return FilePlan(recipes, assigned, requested, skipped, selector.unmatched, shared_with)


def _pruned(
    plan: FilePlan, name: str, weight: torch.Tensor, seed: int, measure: bool, where: str
) -> tuple[torch.Tensor, LayerReport]:
    """A tensor, pruned, and its row."""
    recipe, sparsity = plan.assigned[name]
    try:
        out = sparsify_layer(weight.flatten(1), name, recipe, sparsity, seed=seed)
    except ValueError as error:
        raise ValueError(f"{where}: tensor {name!r}: {error}") from error
    row = layer_report(
        name, weight, out.report, out.report.errors if measure else None, plan.shared_with[name],
        recipe=plan.recipes.index(recipe),
    )  # fmt: skip
    return out.weight.reshape(weight.shape), row


def _by_memory(checkpoint: Checkpoint) -> dict[str, list[str]]:
    """The tensors of two dimensions or more: the first name of each, and all its names."""
    shared: dict[str, list[str]] = {}
    for name in checkpoint.names:
        if len(checkpoint.shape(name)) >= 2:
            shared.setdefault(checkpoint.tied_to(name) or name, []).append(name)
    return shared


def _looks_like_embedding(name: str) -> bool:
    return any(matches(pattern, [name.lower()]) for pattern in EMBEDDINGS)
