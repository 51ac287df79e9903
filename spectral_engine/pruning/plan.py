"""The plan of a pruning: which weights, by which recipe, and how sparse each becomes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from spectral_kernels import check_divides
from torch import nn

from spectral_engine.distributed.groups import sharing_group
from spectral_engine.layers.find import Layer, Skipped, layers_to_prune
from spectral_engine.layers.ready import require_ready
from spectral_engine.layers.selector import RecipeSelector
from spectral_engine.masking.model import masks
from spectral_engine.recipe.allocation import Weight, clamp_nonempty, mean_sparsity, shares_of
from spectral_engine.recipe.recipe import Recipe


class Candidate(NamedTuple):
    """A weight to prune, before the budget is shared out.

    load: reads the weight. shape: as it is stored. matrix: (m, n) of one of its matrices, of which
    there are `stacked`. recipe: the index of its recipe.
    """

    name: str
    load: Callable[[], Any]
    shape: Sequence[int]
    matrix: tuple[int, int]
    stacked: int
    recipe: int


class Assignment(NamedTuple):
    """What is done to a weight: a recipe, and its share of the budget as a sparsity."""

    recipe: Recipe
    sparsity: float


@dataclass(frozen=True)
class Plan:
    """What a pruning will do.

    recipes: as they were given. assigned: by the weight's name.
    requested: the sparsity of all of them together.
    skipped: what is left alone. unmatched: patterns that matched no weight.
    """

    recipes: Sequence[Recipe]
    assigned: Mapping[str, Assignment]
    requested: float
    skipped: Sequence[Skipped]
    unmatched: Sequence[str]


@dataclass(frozen=True)
class ModelPlan(Plan):
    """The plan for a model, with its layers in order."""

    layers: Sequence[Layer]


def plan_model(
    model: nn.Module,
    recipes: Sequence[Recipe],
    targets: Any = None,
    ignore: Any = None,
    load: Callable[[Layer], torch.Tensor] | None = None,
) -> ModelPlan:
    """The plan for a model, all of whose weights are checked; nothing of it is changed.

    Args:
        model: see `prune`. recipes: at least one; the first that selects a weight is its recipe.
        targets, ignore: narrow what the recipes select.
        load: gives a layer's matrices, for a model whose weights are elsewhere: only those are
            read whose values a budget depends on, and none is checked.

    Raises:
        TypeError, ValueError: name the argument or the weight, what was expected and what came.
    """
    selector = RecipeSelector(recipes, targets, ignore)
    layers, skipped = layers_to_prune(model, selector, splits_of(recipes))
    if load is None:
        require_ready(layers, {id(mask.parameter) for mask in masks(model).values()})
    candidates = []
    for layer in layers:
        shape = layer.matrix_shape
        recipe = selector.recipe_of(layer.called, layer.classes, layer.view.opt_in)
        candidates.append(
            Candidate(
                layer.name, layer.matrices if load is None else partial(load, layer), layer.shape,
                (shape[-2], shape[-1]),
                shape[0] if layer.view.batch else 1, recipe,
            )
        )  # fmt: skip
    group = None if load is None else sharing_group()  # of sharded weights all read all
    assigned, requested = share_out(recipes, candidates, "model", group)
    return ModelPlan(recipes, assigned, requested, skipped, selector.unmatched, layers)


def splits_of(recipes: Sequence[Recipe]) -> dict[str, Any]:
    """The weights that the recipes see as several matrices: patterns to parts."""
    return {pattern: parts for one in recipes for pattern, parts in one.select.splits.items()}


def share_out(
    recipes: Sequence[Recipe], candidates: Sequence[Candidate], where: str, group: Any = None
) -> tuple[dict[str, Assignment], float]:
    """What is done to each weight, and the sparsity of all together; each recipe shares its budget.

    A layer, or with group "row" a row, that is too small for the sparsity keeps one entry, or one
    block.

    Args:
        where: the weights are, for messages: "model", or a path.
        group: of processes that all have these candidates, and share out whose values are read.

    Raises:
        ValueError: a pattern does not divide a weight, or a floor leaves more than a sparsity does.
    """
    assigned: dict[str, Assignment] = {}
    for index, recipe in enumerate(recipes):
        own = [one for one in candidates if one.recipe == index]
        _require_divisible(own, recipe, where)
        weights = [Weight(one.name, one.load, one.shape) for one in own]
        shares = shares_of(recipe.budget, weights, group) if own else {}
        for one in own:
            m, n = one.matrix
            share = clamp_nonempty(shares[one.name], m * one.stacked, n, recipe.budget)
            assigned[one.name] = Assignment(recipe, share)
    target = recipes[0].budget.target if len(recipes) == 1 else None
    if target is None:
        sizes = {one.name: one.matrix[0] * one.matrix[1] * one.stacked for one in candidates}
        target = mean_sparsity((assigned[name].sparsity, size) for name, size in sizes.items())
    return assigned, target


def _require_divisible(candidates: Sequence[Candidate], recipe: Recipe, where: str) -> None:
    pattern = recipe.budget.pattern
    if pattern is None:
        return
    for one in candidates:
        try:
            check_divides(pattern, *one.matrix)
        except ValueError as error:
            raise ValueError(
                f"{where}: {one.name}: {error}; name it in ignore to leave it as it is"
            ) from error
