"""Each layer of a plan made sparse: by itself, several together, or by one of several processes."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from spectral_engine.calibration.calibrator import Calibrator
from spectral_engine.calibration.request import Calibrated
from spectral_engine.calibration.sums.stage_sums import Waiting
from spectral_engine.distributed.groups import group_of, sharing_group
from spectral_engine.distributed.owners import Made, by_owners
from spectral_engine.distributed.shards import gathered, here
from spectral_engine.factored.model import reason_against_factors
from spectral_engine.layers.find import Layer
from spectral_engine.masking.mask import mask_of
from spectral_engine.pruning.batched import goes_together, sparsified_together
from spectral_engine.pruning.plan import Plan
from spectral_engine.pruning.report import LayerReport, errors_of, layer_report
from spectral_engine.sparsifying.report import Sparsified
from spectral_engine.sparsifying.stacks import sparsify_layer


@dataclass(frozen=True)
class Done:
    """What a layer becomes, before it is written: matrices, a shift of bias, factors, its row."""

    layer: Layer
    weight: torch.Tensor
    row: LayerReport
    bias: torch.Tensor | None = None
    factors: tuple[torch.Tensor, torch.Tensor] | None = None


def sparsified(
    plan: Plan, calibrated: Iterable[Calibrated], seed: int, measure: bool
) -> Iterator[Done]:
    """Each layer made sparse.

    One process does each layer that is sharded, and where processes share their work every layer;
    all get what it makes. What a device takes together goes together.

    Args:
        plan: of the model. calibrated: its layers, in the order in which they are pruned; a
            sequence of all, or as they come, each after what was done to those before it.
        seed, measure: see `prune`.

    Raises:
        ValueError: a layer cannot be sparsified; names it.
    """
    sharing = sharing_group()
    if isinstance(calibrated, Calibrator) and calibrated.shares:
        for layers in calibrated.waiting():
            yield from _by_owners(plan, layers, seed, measure, sharing)
        return
    alone = list(calibrated) if isinstance(calibrated, Sequence) else []
    shared = [Waiting(one.layer, one) for one in alone if sharing is not None or one.layer.sharded]
    if shared:
        group = group_of(one.layer.parameter for one in shared) or sharing
        yield from _by_owners(plan, shared, seed, measure, group)
        alone = [one for one in alone if sharing is None and not one.layer.sharded]
        calibrated = []
    grouped = [
        one.layer
        for one in alone
        if one.moments is None and goes_together(one.layer, plan.assigned[one.layer.name].recipe)
    ]
    together = sparsified_together(grouped, plan.assigned, seed)
    names = {layer.name for layer in grouped}
    for one in alone or calibrated:
        matrices, kept = one.layer.matrices(), _kept(one.layer)
        out = next(together) if one.layer.name in names else None
        yield _sparsify_one(plan, one, matrices, kept, seed, measure, out)


def _by_owners(
    plan: Plan, shared: Sequence[Waiting], seed: int, measure: bool, group: Any
) -> Iterator[Done]:
    """Each layer is done by one process of a group, its result given to all."""
    if not shared:
        return

    def ready(index: int, owner: int) -> tuple[Calibrated, torch.Tensor, torch.Tensor | None]:
        layer = shared[index].layer
        return shared[index].ready(owner), layer.matrices(), _kept(layer)

    def work(index: int, found: tuple[Calibrated, torch.Tensor, torch.Tensor | None]) -> Made:
        done = _sparsify_one(plan, *found, seed, measure)
        bias = [] if done.bias is None else [done.bias]
        return Made([done.weight, *bias, *(done.factors or ())], (done.row, bool(bias)))

    costs = [_cost(plan, one.layer) for one in shared]
    device = here(shared[0].layer.parameter).device
    for index, made in by_owners(costs, ready, work, group, device):
        row, has_bias = made.plain
        weight, *more = made.tensors
        bias = more.pop(0) if has_bias else None
        yield Done(shared[index].layer, weight, row, bias, (more[0], more[1]) if more else None)


def _cost(plan: Plan, layer: Layer) -> float:
    """About how long a layer takes, in comparison."""
    size = math.prod(layer.shape)
    recipe = plan.assigned[layer.name].recipe
    quick = not recipe.method.needs_low_rank and not (recipe.refit or recipe.low_rank)
    return size if quick else size * float(min(layer.matrix_shape[-2:]))


def _sparsify_one(
    plan: Plan,
    one: Calibrated,
    matrices: torch.Tensor,
    kept: torch.Tensor | None,
    seed: int,
    measure: bool,
    out: Sparsified | None = None,
) -> Done:
    """A layer made sparse.

    Args:
        matrices: the layer's. kept: see `_kept`. out: what has been made of them, if it has.
    """
    layer = one.layer
    recipe, sparsity = plan.assigned[layer.name]
    if recipe.refit is not None and recipe.refit.bias_correction and not one.bias_correction:
        recipe = recipe.without_bias_correction()  # it has no bias of its own
    factorless = None if recipe.low_rank is None else reason_against_factors(layer)
    if factorless is not None:
        recipe = recipe.without_low_rank()
    try:
        if out is None:
            out = sparsify_layer(matrices, layer.name, recipe, sparsity, one.moments, seed=seed)
    except ValueError as error:
        raise ValueError(f"model: {layer.name}: {error}") from error
    if kept is not None:
        out = _without_masked(out, kept)
    errors = errors_of(matrices, out) if measure else None
    row = layer_report(
        layer.name, layer.outline, out.report, errors, layer.shared_with,
        recipe=plan.recipes.index(plan.assigned[layer.name].recipe),
        samples=None if one.moments is None else one.moments.count, uncalibrated=one.reason,
        few=one.few, factorless=factorless,
    )  # fmt: skip
    return Done(layer, out.weight, row, out.bias, out.factors)


def _kept(layer: Layer) -> torch.Tensor | None:
    """What the layer's mask keeps, shaped as its matrices; None without a mask."""
    mask = mask_of(layer.parameter)
    return None if mask is None else layer.as_matrices(gathered(mask.unpack()))


def _without_masked(out: Sparsified, kept: torch.Tensor) -> Sparsified:
    """The same with zeros where a mask keeps them."""
    out.weight.masked_fill_(~kept, 0)
    nnz = int(torch.count_nonzero(out.weight)) + sum(part.numel() for part in out.factors or ())
    sparsity = 1.0 - nnz / out.report.size
    return replace(out, report=replace(out.report, nnz=nnz, sparsity=sparsity))
