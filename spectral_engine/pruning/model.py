"""Prune a model in place."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from spectral_kernels import stream_id
from spectral_kernels.reference.patterns import check_divides, parse_pattern
from torch import nn

from spectral_engine.calibration.calibrator import MAX_BYTES, Calibrated, Calibration
from spectral_engine.calibration.forward import Forward
from spectral_engine.calibration.input_moments import InputMoments
from spectral_engine.layers.bias import add_to_bias, bias_of
from spectral_engine.layers.find import Layer, layers_to_prune, require_ready
from spectral_engine.layers.selector import Selector
from spectral_engine.masking.mask import mask_of
from spectral_engine.masking.model import keep_zeros
from spectral_engine.masking.model import masks as current_masks
from spectral_engine.matrix.errors import batch_errors
from spectral_engine.matrix.moments import Moments
from spectral_engine.matrix.sparsify import DEFAULT_SPARSITY, Sparsified, sparsify
from spectral_engine.pruning.allocation import mean_sparsity, none_empty
from spectral_engine.pruning.batched import goes_together, sparsified_together
from spectral_engine.pruning.options import check_options, clamp_rank, method_of
from spectral_engine.pruning.report import LayerReport, PruneReport, layer_report
from spectral_engine.pruning.rollback import restored_on_error
from spectral_engine.pruning.stacks import equal_shares, sparsify_each, sparsify_stacked
from spectral_engine.recipe.legacy import NO_REFIT, REFITS, automatic


def prune(
    model: nn.Module,
    method: str = "magnitude",
    sparsity: float | None = DEFAULT_SPARSITY,
    *,
    targets: str | Iterable[str] | None = None,
    ignore: str | Iterable[str] | None = None,
    rank: int | None = None,
    law: str | None = None,
    law_parameter: float | None = None,
    rescale: bool | None = None,
    mixture: float | None = None,
    refit: str | None = None,
    calibration: Any = None,
    forward: Forward | None = None,
    bias_correction: bool = False,
    sequential: bool | None = None,
    asymmetric: bool = False,
    max_bytes: int = MAX_BYTES,
    seed: int = 0,
    group: str = "tensor",
    pattern: str | None = None,
    allocation: str | None = None,
    floor: float | None = None,
    max_error: float | None = None,
    split: Mapping[str, Sequence[str] | Mapping[str, int]] | None = None,
    masks: bool = True,
    measure: bool = False,
    progress: Callable[[LayerReport], None] | None = None,
) -> PruneReport:
    """Sparsify the weights of a model in place, by default each to `sparsity`.

    Args:
        model: its weights are seen as the matrices that `layer_views` lists; `register_layer` adds
            to the list. A weight that several modules share is pruned once, if one of its names
            is among `targets` and none is in `ignore`. Zeros that a mask keeps stay zero.
        method, sparsity, law, law_parameter, rescale, mixture, refit, group, pattern: see
            `sparsify`. The pattern must divide every weight. A layer, or with group "row" a row,
            that is too small for the sparsity keeps one entry, or one block.
        allocation: how the layers share the budget, "uniform", "global", "erk" or "spectral"; the
            magnitudes of the weights decide, whatever the method scores by; see `allocation`. By
            default "uniform", and "erk" for method "auto" with calibration.
        floor: the least density of a layer; by default a tenth of that of all of them.
        max_error: instead of a sparsity, the most that ||S - A||_F / ||A||_F may be: of each layer
            with allocation "uniform", of all, as a root mean square, with "spectral". It holds for
            "magnitude" as it is; every other method, group, pattern or refit leaves more.
        targets, ignore: class names ("Linear"), globs over names ("encoder.*", "lstm.*[[]cell]"),
            names as they are in a report, or "re:..."; by default every weight, output heads
            included, but no embedding that is not tied to one. What is left alone is in
            `report.skipped`, with the reason; a pattern that matches nothing in `report.unmatched`.
        calibration: batches of the model's inputs, an iterable that can be gone through several
            times; a batch is a tensor, a dictionary, or a tuple or list whose leading items are
            forward's arguments. Or what `calibrate` gathered from them. Scores are then weighed
            with the root mean square of each input feature, and refits can fit the outputs; see
            `sparsify`. Layers whose inputs cannot be seen (see `layer_inputs`) are pruned without,
            and say so in the report.
        forward: called as forward(model, batch) instead of the model, for other batches.
        bias_correction: also change biases so that each layer's mean output stays.
        sequential: True takes a layer's inputs from the model with the layers before it pruned,
            one pass a layer, in the memory of the largest layer's moments and as much again (refits
            "sparsegpt" and "admm" take more); False from the dense model, in one pass, which holds
            all layers' moments at once. By default as many layers a pass as fit in the memory that
            True takes, each seen through the layers that earlier passes pruned.
        asymmetric: fit what the layer gives in the dense model, of which a copy is held meanwhile.
        max_bytes: of moments and the working memory of the refit, the pruned weight included.
        rank: of spectral scores; a layer with min(m, n) under it uses min(m, n).
        seed: with the layer's name, whose hash is the stream, it fixes all draws. To draw again
            from what an earlier pruning kept, take another: under the same one it is kept again.
        split: weights that are several matrices, one above the other: a pattern over names to the
            names of equal parts, {"*.qkv": ("q", "k", "v")}, or to their numbers of rows,
            {"*.qkv": {"q": 64, "k": 16, "v": 16}}.
        masks: whether the zeros stay zero from now on, through any optimizer and any copy; see
            `masks`, `finalize`. Without, what is zero now may be trained away.
        measure: also compare spectra before and after, which takes longer than pruning.
        progress: called with each layer's row as it is done.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came. All arguments
            and weights are checked before the first weight is changed; float16 weights are tried
            where a method may overflow them, and drawn again, the same, when their turn comes.
            With calibration, an error on the way brings back all that was changed.
    """
    start = time.perf_counter()
    options: dict[str, Any] = {
        "law": law, "law_parameter": law_parameter, "rescale": rescale, "mixture": mixture,
        "refit": refit, "bias_correction": bias_correction, "seed": seed, "group": group,
        "pattern": pattern,
    }  # fmt: skip
    goal, report = check_options(
        method, sparsity, rank=rank, calibration=calibration, forward=forward,
        sequential=sequential, asymmetric=asymmetric, allocation=allocation, floor=floor,
        max_error=max_error, masks=masks, **options,
    )  # fmt: skip
    selector = Selector.of(targets, ignore)
    masked = {id(mask.parameter) for mask in current_masks(model).values()}
    layers, report.skipped = layers_to_prune(model, selector, split)
    report.unmatched = selector.unmatched
    require_ready(layers, masked)
    if pattern is not None:
        _require_divisible(layers, pattern)
    shares = goal.sparsities(
        (layer.name, layer.matrices, tuple(layer.weight.shape)) for layer in layers
    )
    refit, group = automatic(method, calibration is not None, refit, group, pattern)
    for layer in layers:
        matrices = layer.matrices()
        m, n = matrices.shape[:-1].numel(), matrices.shape[-1]
        shares[layer.name] = none_empty(shares[layer.name], m, n, group, pattern)
    if goal.sparsity is None:
        report.requested = mean_sparsity((shares[one.name], one.weight.numel()) for one in layers)
    steps: Iterable[Calibrated] = [Calibrated(layer, None) for layer in layers]
    if calibration is not None:
        work, passes = NO_REFIT if refit is None else REFITS[refit], 0
        if isinstance(calibration, InputMoments):
            steps = list(calibration.of(layers, bias_correction, work, max_bytes))
        else:
            steps = inputs = Calibration(
                model, layers, calibration, forward, sequential, asymmetric, max_bytes,
                bias_correction, work,
            )  # fmt: skip
            passes = inputs.passes
        report.options |= {
            "refit": refit, "group": group, "asymmetric": asymmetric, "passes": passes,
        }  # fmt: skip
    elif report.options["rescale"] or refit is not None:
        for step in steps:
            if step.layer.parameter.dtype == torch.float16:
                _sparsify_layer(step, method, shares[step.layer.name], rank, options)
    chosen = method_of(method, options)
    plain = calibration is None and pattern is None and group == "tensor" and chosen.plain
    grouped = [layer for layer in layers if plain and goes_together(layer)]
    together = sparsified_together(grouped, chosen, shares, seed)
    grouped_names = {layer.name for layer in grouped}
    done: list[Layer] = []
    try:
        with nullcontext(_ignore) if calibration is None else restored_on_error(done) as save:
            for step in steps:
                if step.layer.name in grouped_names:
                    out = next(together)
                else:
                    share = shares[step.layer.name]
                    out = _sparsify_layer(step, method, share, rank, options)
                row = _prune_layer(step, _without_masked(step.layer, out), measure, save)
                done.append(step.layer)
                report.layers.append(row)
                if progress is not None:
                    progress(row)
    finally:
        if masks:
            keep_zeros(done)
    report.seconds = time.perf_counter() - start
    return report


def _require_divisible(layers: Sequence[Layer], pattern: str) -> None:
    for layer in layers:
        m, n = layer.matrices().shape[-2:]
        try:
            check_divides(parse_pattern(pattern), m, n)
        except ValueError as error:
            raise ValueError(
                f"model: {layer.name}: {error}; name it in ignore to leave it as it is"
            ) from error


def _ignore(_: torch.Tensor) -> None:
    """Nothing is saved where nothing will be brought back."""


def _sparsify_layer(
    step: Calibrated, method: str, sparsity: float, rank: int | None, options: dict[str, Any]
) -> Sparsified:
    """The layer's matrices, sparse."""
    layer, moments = step.layer, step.moments
    weight = layer.matrices()
    rank = clamp_rank(rank, weight[0] if layer.view.batch else weight)
    chosen = method_of(method, options)
    options = {**options, "bias_correction": step.bias_correction}
    if chosen.needs_inputs and moments is None:
        chosen, options = replace(chosen, refit=None), {**options, "refit": None}

    def one(
        matrix: torch.Tensor, sparsity: float, stream: int, inputs: Moments | None
    ) -> Sparsified:
        given = {**options, "inputs": inputs}
        return sparsify(matrix, method, sparsity, rank=rank, stream=stream, **given)

    def by_magnitude(
        matrix: torch.Tensor, sparsity: float, stream: int, inputs: Moments | None
    ) -> Sparsified:
        rescale = chosen.rescale if chosen.law != "threshold" else None
        same = {**options, "law": chosen.law, "rescale": rescale, "mixture": None}
        return sparsify(matrix, "magnitude", sparsity, stream=stream, **same)

    alone = moments is None and chosen.refit is None
    try:
        if not layer.view.batch:
            out = one(weight, sparsity, stream_id(layer.name), moments)
        elif alone and not chosen.needs_low_rank:
            out = sparsify_stacked(weight, sparsity, one, layer.name)
        elif alone and min(weight.shape[1:]) == 1:
            out = sparsify_stacked(weight, sparsity, by_magnitude, layer.name)
        else:
            whole = options["group"] == "tensor" and options["pattern"] is None
            shares = equal_shares(weight, sparsity) if whole else [sparsity] * len(weight)
            out = sparsify_each(weight, shares, one, layer.name, moments)
    except ValueError as error:
        raise ValueError(f"model: {layer.name}: {error}") from error
    return out


def _without_masked(layer: Layer, out: Sparsified) -> Sparsified:
    """The same with zeros where a mask keeps them."""
    mask = mask_of(layer.parameter)
    if mask is None:
        return out
    out.weight.masked_fill_(~layer.as_matrices(mask.unpack()), 0)
    nnz = int(torch.count_nonzero(out.weight))
    sparsity = 1.0 - nnz / out.report.size
    return replace(out, report=replace(out.report, nnz=nnz, sparsity=sparsity))


def _prune_layer(
    step: Calibrated,
    out: Sparsified,
    measure: bool,
    save: Callable[[torch.Tensor], None],
) -> LayerReport:
    layer = step.layer
    errors = None
    if measure:
        batch = layer.view.batch
        errors = batch_errors(layer.matrices(), out.weight) if batch else out.report.errors
    row = layer_report(layer.name, layer.weight, out.report, errors, layer.shared_with)
    row = replace(
        row,
        samples=None if step.moments is None else step.moments.count,
        uncalibrated=step.reason,
    )
    save(layer.parameter)
    layer.write(out.weight)
    bias = bias_of(layer)
    if out.bias is not None and bias is not None:
        save(bias)
        add_to_bias(layer, out.bias)
    return row
