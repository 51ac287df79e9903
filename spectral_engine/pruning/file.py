"""Prune a checkpoint on disk, one tensor in memory at a time."""

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch

from spectral_engine._util.checks import boolean, file_path, integer
from spectral_engine._util.progress import Progress, check_progress, reporting
from spectral_engine._util.text import natural
from spectral_engine.checkpoints import Checkpoint, open_checkpoint, rewrite
from spectral_engine.checkpoints.draft import Draft
from spectral_engine.distributed.groups import is_first, sharing_group
from spectral_engine.layers.find import Skipped, reasons
from spectral_engine.layers.selector import RecipeSelector
from spectral_engine.pruning.plan import Candidate, Plan, share_out
from spectral_engine.pruning.report import LayerReport, PruneReport, errors_of, layer_report
from spectral_engine.pruning.shared_file import SharedTensors
from spectral_engine.pruning.tensors import TensorLayer, tensors_of
from spectral_engine.recipe.methods import Method
from spectral_engine.recipe.presets import as_recipes
from spectral_engine.recipe.recipe import Recipe
from spectral_engine.sparsifying.stacks import sparsify_layer


@dataclass
class Kept:
    """What a run without calibration has done, and what it keeps for another one.

    draft: where the target grows; None if nothing is kept.
    rows: by tensor, for those that are written at first.
    """

    draft: Draft | None = None
    rows: dict[str, list[LayerReport]] = field(default_factory=dict)


#: From an open checkpoint and its plan to what is kept, for as long as the run goes.
Keep = Callable[[Checkpoint, "FilePlan"], AbstractContextManager[Kept]]


def prune_tensors(
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
    keep: Keep | None = None,
) -> PruneReport:
    """Write a pruned copy of a weight file or a folder, without calibration; see `prune_file`.

    A tensor is judged as `prune` would judge it in its model, where config.json names one that
    transformers knows, and by its name and shape elsewhere; the report says which. Embeddings are
    pruned only where `targets` names them, and what belongs to a quantised weight never. Order,
    dtypes, metadata and all other files stay as they are; the target appears whole or not at all. A
    budget that layers share by what is in them reads every tensor twice.

    Args:
        source: .safetensors, .pt, .pth, .bin, .npz or a folder; no code of a pickle is run.
        target: a file of the same format or .safetensors; a folder for a folder.
        recipe, sparsity, seed, measure, progress: as for `prune`; a recipe that needs calibration
            inputs is refused.
        targets, ignore: globs over tensor names, with or without ".weight", or "re:..."; class
            names too where the model is known.
        force: replace an existing target.
        keep: gives what an earlier run has done, and keeps what this one does; None for nothing.

    Returns:
        What was done to each tensor, what was left alone and why.

    Raises:
        TypeError, ValueError, OSError: name what was wrong; nothing is left half-written.

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> torch.save({"a.weight": torch.randn(8, 6)}, folder / "dense.pt")
        >>> report = prune_tensors(folder / "dense.pt", folder / "pruned.pt", "magnitude", 0.75)
        >>> report.nnz, report.size
        (12, 48)
    """
    start = time.perf_counter()
    for name, value in (("measure", measure), ("force", force)):
        boolean(name, value)
    integer("seed", seed, least=0, most=2**64 - 1)
    check_progress(progress)
    recipes = as_recipes(recipe, sparsity)
    refuse_low_rank(recipes)
    with open_checkpoint(file_path("source", source)) as checkpoint:
        plan = plan_checkpoint(checkpoint, recipes, targets, ignore)
        report = PruneReport(
            recipes, plan.requested, seed, skipped=[*plan.skipped],
            unmatched=[*plan.unmatched], notes=[plan.note],
        )  # fmt: skip
        with (
            nullcontext(Kept()) if keep is None else keep(checkpoint, plan) as kept,
            reporting(is_first() and progress, "pruning", len(plan.assigned)) as show,
        ):
            written = set() if kept.draft is None else set(kept.draft.names)
            for rows in kept.rows.values():
                for row in rows:
                    show(row)

            def done(name: str, rows: list[LayerReport]) -> None:
                kept.rows[name] = rows
                for row in rows:
                    show(row)

            def pruned(
                name: str, weight: torch.Tensor | None = None
            ) -> tuple[torch.Tensor, list[LayerReport]]:
                found = checkpoint.read(name) if weight is None else weight
                layers = plan.by_tensor[name]
                return found, [_prune_in(plan, one, found, seed, measure) for one in layers]

            def transform(name: str, weight: torch.Tensor) -> torch.Tensor:
                weight, rows = pruned(name, weight)
                done(name, rows)
                return weight

            def write(change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
                rewrite(
                    checkpoint, target, change, select=plan.by_tensor, force=force,
                    draft=kept.draft,
                )  # fmt: skip

            group = sharing_group()
            if group is None:
                write(transform)
                report.layers += chain.from_iterable(kept.rows.values())
            else:
                report.layers += chain.from_iterable(kept.rows.values())
                left = [name for name in plan.by_tensor if name not in written]
                costs = {name: _cost(plan, checkpoint, name) for name in left}
                report.layers += SharedTensors(costs, pruned, group).written(write, done)
    report.layers.sort(key=lambda layer: natural(layer.name))  # a file has 10 before 2
    report.seconds = time.perf_counter() - start
    return report


def refuse_low_rank(recipes: Sequence[Recipe]) -> None:
    """Refuse recipes that put factors beside a weight.

    Raises:
        ValueError: names the first.
    """
    for one in recipes:
        if one.low_rank is not None:
            raise ValueError(
                "recipe: low_rank puts factors beside a weight, and a rewritten file has no place "
                f"for them; use prune(model, ...) and save its state_dict(); got {one!r}"
            )


@dataclass(frozen=True)
class FilePlan(Plan):
    """The plan for a checkpoint: its layers by the tensor that they are in, and how it was judged.

    path: of the checkpoint, for messages.
    """

    by_tensor: Mapping[str, Sequence[TensorLayer]]
    note: str
    path: str


def plan_checkpoint(
    checkpoint: Checkpoint, recipes: Sequence[Recipe], targets: Any = None, ignore: Any = None
) -> FilePlan:
    """The plan for an open checkpoint; nothing is read but what the budget needs.

    Raises:
        TypeError, ValueError: name the argument or the tensor, what was expected and what came.
    """
    selector = RecipeSelector(recipes, targets, ignore)
    tensors = tensors_of(checkpoint)
    skipped = list(tensors.left)
    candidates: list[Candidate] = []
    by_tensor: dict[str, list[TensorLayer]] = {}
    for layer in tensors.layers:
        choice = (layer.called, layer.classes, layer.view.opt_in)
        reason = selector.reason_against(*choice)
        if reason is not None:
            skipped.append(Skipped(layer.name, reason))
            continue
        by_tensor.setdefault(layer.tensor, []).append(layer)
        candidates.append(_candidate(checkpoint, layer, selector.recipe_of(*choice)))
    skipped += [Skipped(name, reason) for name, reason in checkpoint.other_weights().items()]
    if not candidates:
        raise ValueError(
            f"targets: nothing to prune in {checkpoint.path} with {selector}{reasons(skipped)}; "
            f"expected globs or 're:...' over tensor names ({tensors.note})"
        )
    assigned, requested = share_out(recipes, candidates, str(checkpoint.path), sharing_group())
    return FilePlan(
        recipes, assigned, requested, skipped, selector.unmatched, by_tensor, tensors.note,
        str(checkpoint.path),
    )  # fmt: skip


def _candidate(checkpoint: Checkpoint, layer: TensorLayer, recipe: int) -> Candidate:
    shape = layer.matrices(torch.empty(checkpoint.shape(layer.tensor), device="meta")).shape

    def load() -> torch.Tensor:
        return layer.matrices(checkpoint.read(layer.tensor))

    stacked = shape[0] if layer.view.batch else 1
    return Candidate(layer.name, load, layer.shape, (shape[-2], shape[-1]), stacked, recipe)


def _cost(plan: FilePlan, checkpoint: Checkpoint, name: str) -> float:
    """About how long a tensor takes, in comparison."""
    shape = checkpoint.shape(name)
    recipe = plan.assigned[plan.by_tensor[name][0].name].recipe
    quick = not recipe.method.needs_low_rank and recipe.refit is None
    return math.prod(shape) * (1.0 if quick else float(min(shape[-2:])))


def _prune_in(
    plan: FilePlan, layer: TensorLayer, weight: torch.Tensor, seed: int, measure: bool
) -> LayerReport:
    """Prune a layer in its tensor, in place; its row."""
    recipe, sparsity = plan.assigned[layer.name]
    matrices = layer.matrices(weight)
    try:
        out = sparsify_layer(matrices, layer.name, recipe, sparsity, seed=seed)
    except ValueError as error:
        raise ValueError(f"{plan.path}: tensor {layer.name!r}: {error}") from error
    errors = errors_of(matrices, out) if measure else None
    row = layer_report(
        layer.name, layer.entries(weight), out.report, errors, layer.shared_with,
        recipe=plan.recipes.index(recipe),
    )  # fmt: skip
    entries = layer.entries(weight)
    entries.copy_(out.weight.reshape(entries.shape))
    return row
