"""Prune a model in place: plan, calibrate, sparsify, write."""

import copy
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from spectral_engine._util.checks import boolean, integer
from spectral_engine._util.globs import patterns
from spectral_engine._util.progress import Progress, check_progress, reporting
from spectral_engine.calibration.batches import held
from spectral_engine.calibration.calibrator import Calibrator
from spectral_engine.calibration.forward import require_loaded
from spectral_engine.calibration.input_moments import InputMoments
from spectral_engine.calibration.request import Calibrated, Calibration, Request
from spectral_engine.distributed.groups import is_first
from spectral_engine.distributed.shards import is_sharded
from spectral_engine.factored.model import drop_factors, hold_factors, reason_against_factors
from spectral_engine.factored.modules import LowRankLayer
from spectral_engine.layers.bias import add_to_bias, bias_of
from spectral_engine.layers.find import Layer
from spectral_engine.masking.model import keep_zeros
from spectral_engine.pruning.layerwise import Done, sparsified
from spectral_engine.pruning.plan import ModelPlan, Plan, plan_model
from spectral_engine.pruning.report import CalibrationReport, LayerReport, PruneReport
from spectral_engine.pruning.rollback import Save, restored_on_error
from spectral_engine.pruning.without_data import best_without_data
from spectral_engine.recipe.methods import Method
from spectral_engine.recipe.presets import as_recipes
from spectral_engine.recipe.recipe import Recipe
from spectral_engine.recipe.reconstruction import Reconstruction
from spectral_engine.reconstruction.reconstruct import reconstruct_blocks
from spectral_engine.reconstruction.units import alike


def prune(
    model: nn.Module,
    recipe: Recipe | Method | str | Sequence[Recipe] = "magnitude",
    sparsity: float | None = None,
    *,
    calibration: Any = None,
    targets: str | Iterable[str] | None = None,
    ignore: str | Iterable[str] | None = None,
    seed: int = 0,
    masks: bool = True,
    measure: bool = False,
    progress: Progress[LayerReport] = True,
) -> PruneReport:
    """Sparsify the weights of a model in place.

    Args:
        model: its weights are seen as the matrices that `layers/views.py` lists; `register_layer`
            adds to the list. A weight that several modules share is pruned once, if one of its
            names is among `targets` and none is in `ignore`. Zeros that a mask keeps stay zero.
        recipe: a `Recipe`, a method such as `se.Principal(rank=64)`, a preset's name such as
            "magnitude", "wanda" or "auto", or a list of recipes, of which the first that selects a
            weight is that weight's.
        sparsity: fraction of zeros, in [0, 1), in place of that of the recipe's budget; None leaves
            it to the recipe, whose default is 0.9.
        calibration: batches of the model's inputs (see `Calibration` for what a batch is), a
            `Calibration` of them, or what `calibrate` gathered. Scores are then weighed with the
            root mean square of each input feature, and refits can fit the outputs. Layers whose
            inputs cannot be seen are pruned without, and say so in the report. Without any, "auto"
            tries recipes on inputs that `simulate` makes up; the report notes how each did.
        targets, ignore: class names ("Linear"), globs over names ("encoder.*", "lstm.*[[]cell]"),
            names as they are in a report, or "re:..."; they narrow what the recipe selects. By
            default every weight, output heads included, but no embedding, also where an output head
            shares its memory.
        seed: with the layer's name, whose hash is the stream, it fixes all draws. To draw again
            from what an earlier pruning kept, take another: under the same one it is kept again.
        masks: whether the zeros stay zero from now on, through any optimizer and any copy; see
            `se.masks`, `se.finalize`. Without, what is zero now may be trained away.
        measure: also compare spectra before and after, which takes longer than pruning.
        progress: True for a bar on a terminal, False for none, or a function of each layer's row.

    Returns:
        What was done to each layer, what was left alone and why.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came. All arguments
            and weights are checked before the first weight is changed; an error on the way brings
            back all that was changed.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 2))
        >>> report = prune(model, "magnitude", 0.75, ignore="1")
        >>> report.nnz, report.size
        (8, 32)
    """
    for name, value in (("masks", masks), ("measure", measure)):
        boolean(name, value)
    integer("seed", seed, least=0, most=2**64 - 1)
    check_progress(progress)
    source = as_calibration(calibration)
    recipes = as_recipes(
        recipe, sparsity, calibrated=source is not None, alike=source is not None and alike(model)
    )
    if isinstance(recipe, str) and recipe == "auto" and source is None:
        chosen = (
            None if targets is None else patterns(targets, "targets"),
            None if ignore is None else patterns(ignore, "ignore"),
        )
        return _without_data(model, recipes, sparsity, chosen, seed, masks, measure, progress)
    plan = plan_model(model, recipes, targets, ignore)
    return _pruned(model, plan, source, seed, masks, measure, progress)


def _pruned(
    model: nn.Module, plan: ModelPlan, source: Calibration | InputMoments | None, seed: int,
    masks: bool, measure: bool, progress: Progress[LayerReport],
) -> PruneReport:  # fmt: skip
    """`prune`, of what is planned."""
    start = time.perf_counter()
    source, dense, settings, note = _to_reconstruct(model, plan.recipes, source)
    calibrated, seen = _calibrated(model, plan, source)
    report = PruneReport(
        plan.recipes, plan.requested, seed, calibration=seen, skipped=[*plan.skipped],
        unmatched=[*plan.unmatched],
    )  # fmt: skip
    done: list[Layer] = []
    factored = _factored(plan)
    may_fail = source is not None or callable(progress) or measure or _may_fail(plan)
    guard = restored_on_error(done) if may_fail else nullcontext(_keep_nothing)
    try:
        with guard as save, reporting(is_first() and progress, "pruning", len(plan.layers)) as show:
            for layer, row in pruned_layers(plan, calibrated, seed, measure, save):
                done.append(layer)
                report.layers.append(row)
                show(row)
            if settings is not None and dense is not None and isinstance(source, Calibration):
                report.reconstruction = reconstruct_blocks(
                    model, dense, source, settings, save=save, progress=progress is True
                )
    except BaseException:
        for module in factored:
            if isinstance(module, LowRankLayer):
                drop_factors(module)
        raise
    finally:
        if masks:
            keep_zeros(done)
    order = {layer.name: place for place, layer in enumerate(plan.layers)}
    report.layers.sort(key=lambda row: order[row.name])  # calibration has an order of its own
    report.notes += [note] if note else []
    if isinstance(calibrated, Calibrator) and report.calibration is not None:
        report.calibration = replace(report.calibration, passes=calibrated.passes)
    report.seconds = time.perf_counter() - start
    return report


# Without data


def _without_data(
    model: nn.Module, recipes: Sequence[Recipe], sparsity: float | None,
    chosen: tuple[list[str] | None, list[str] | None], seed: int, masks: bool, measure: bool,
    progress: Progress[LayerReport],
) -> PruneReport:  # fmt: skip
    """`prune` by "auto", where there is no calibration; see `pruning/without_data.py`."""
    start = time.perf_counter()
    layers = plan_model(model, recipes, *chosen).layers

    def attempt(one: Recipe, inputs: InputMoments | None) -> PruneReport:
        return _pruned(
            model, plan_model(model, (one,), *chosen), inputs, seed, False, measure, False
        )

    best = best_without_data(model, layers, attempt, sparsity, *chosen, seed)
    report = best.report
    report.notes.append(best.note)
    done: list[Layer] = []
    try:
        with restored_on_error(done) as save, reporting(progress, "pruning", len(layers)) as show:
            for layer, values, row in zip(layers, best.values, report.layers, strict=True):
                save(layer.parameter)
                layer.weight.copy_(values)
                done.append(layer)
                show(row)
    finally:
        if masks:
            keep_zeros(done)
    report.seconds = time.perf_counter() - start
    return report


# Calibrate


def as_calibration(value: Any) -> Calibration | InputMoments | None:
    """What a user gives for a calibration: batches stand for a `Calibration` of them."""
    if value is None or isinstance(value, Calibration | InputMoments):
        return value
    return Calibration(value)


def _calibrated(
    model: nn.Module, plan: ModelPlan, source: Calibration | InputMoments | None
) -> tuple[Iterable[Calibrated], CalibrationReport | None]:
    """The layers in the order in which they are pruned, with the moments of their inputs."""
    if source is None:
        return [Calibrated(layer, None) for layer in plan.layers], None
    requests = [
        Request(layer, recipe.refit, recipe.low_rank)
        for layer, recipe in ((layer, plan.assigned[layer.name].recipe) for layer in plan.layers)
    ]
    if isinstance(source, InputMoments):
        return list(source.of(requests)), CalibrationReport(passes=0)
    found = Calibrator(model, requests, source)
    return found, CalibrationReport(found.passes, source.asymmetric)


def _to_reconstruct(
    model: nn.Module, recipes: Sequence[Recipe], source: Calibration | InputMoments | None
) -> tuple[Calibration | InputMoments | None, nn.Module | None, Reconstruction | None, str | None]:
    """What a reconstruction begins with, and why there is none if a recipe asks for it.

    The calibration, with its batches held, since they are read again; the dense model; settings.
    """
    settings = next((one.reconstruction for one in recipes if one.reconstruction), None)
    if settings is None:
        return source, None, None, None
    if not isinstance(source, Calibration):
        return source, None, None, "not reconstructed: gathered moments hold no batches"
    if any(is_sharded(parameter) for parameter in model.parameters()):
        return source, None, None, "not reconstructed: the model is sharded"
    require_loaded(model)
    return replace(source, batches=held(source.batches)), copy.deepcopy(model), settings, None


# Sparsify


def pruned_layers(
    plan: Plan, calibrated: Iterable[Calibrated], seed: int, measure: bool, save: Save
) -> Iterator[tuple[Layer, LayerReport]]:
    """Prune layers in place: each, once it is written, with its row.

    They come in their order, unless several processes share them out; see `sparsified`.

    Args:
        plan: what is done to each. calibrated: they, with the moments of their inputs; gathered,
            or as they come, each after what was done to those before it.
        seed, measure: see `prune`. save: called with each parameter before it is changed.

    Raises:
        ValueError: names the layer, what was expected and what came.
    """
    for done in sparsified(plan, calibrated, seed, measure):
        _write(done, save)
        yield done.layer, done.row


# Write


def _factored(plan: ModelPlan) -> list[nn.Module]:
    """The modules that may get factors."""
    return [
        layer.module
        for layer in plan.layers
        if plan.assigned[layer.name].recipe.low_rank is not None
        and reason_against_factors(layer) is None
    ]


def _may_fail(plan: ModelPlan) -> bool:
    """Whether a layer may turn out not to be prunable when its turn comes.

    Plain magnitudes of a weight that the plan has let pass never do.
    """
    for layer in plan.layers:
        recipe, dtype = plan.assigned[layer.name].recipe, layer.parameter.dtype
        plain = not recipe.method.needs_low_rank and recipe.refit is None
        plain = plain and recipe.low_rank is None
        if not plain or recipe.method.rescale or dtype == torch.float64:
            return True
    return False


def _write(done: Done, save: Save) -> None:
    """Put what a layer becomes into the model; `save` what was there."""
    layer = done.layer
    save(layer.parameter)
    layer.write(done.weight)
    bias = bias_of(layer)
    if done.bias is not None and bias is not None:
        save(bias)
        add_to_bias(layer, done.bias)
    if done.factors is not None:
        hold_factors(layer.module, *done.factors)


def _keep_nothing(_: torch.Tensor) -> None:
    """Nothing is saved where nothing will be brought back."""
