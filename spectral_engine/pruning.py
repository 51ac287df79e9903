"""Prune a model in place."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from spectral_kernels import stream_id
from torch import nn

from spectral_engine.layers import Layer, Selector, find_layers, require_ready
from spectral_engine.matrices import check_rank
from spectral_engine.methods import resolve
from spectral_engine.report import LayerReport, PruneReport, layer_report
from spectral_engine.single import Sparsified, sparsify


def prune(
    model: nn.Module,
    method: str = "magnitude",
    sparsity: float = 0.9,
    *,
    targets: str | Iterable[str] | None = None,
    ignore: str | Iterable[str] | None = None,
    rank: int | None = None,
    law: str | None = None,
    law_parameter: float | None = None,
    rescale: bool | None = None,
    mixture: float | None = None,
    refit: str | None = None,
    seed: int = 0,
    group: str = "tensor",
    measure: bool = False,
    progress: Callable[[LayerReport], None] | None = None,
) -> PruneReport:
    """Sparsify the weights of a model in place, each to `sparsity`.

    Args:
        model: its Linear, Conv1d, Conv2d and Conv3d weights are seen as (out, -1). A weight that
            several modules share is pruned once, if one of its names is among `targets` and none
            is in `ignore`.
        method, sparsity, law, law_parameter, rescale, mixture, refit, group: see `sparsify`.
        targets, ignore: class names ("Linear"), globs over names ("encoder.*") or "re:..."; by
            default every prunable weight. What is left alone is in `report.skipped`, with the
            reason; a pattern that matches nothing is in `report.unmatched`.
        rank: of spectral scores; a layer with min(m, n) under it uses min(m, n).
        seed: with the parameter's name, whose hash is the stream, it fixes all draws.
        measure: also compare spectra before and after, which takes longer than pruning.
        progress: called with each layer's row as it is done.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came. All arguments
            and weights are checked before the first weight is changed; float16 weights are tried
            where a method may overflow them, and drawn again, the same, when their turn comes.
    """
    start = time.perf_counter()
    options: dict[str, Any] = {
        "law": law, "law_parameter": law_parameter, "rescale": rescale, "mixture": mixture,
        "refit": refit, "seed": seed, "group": group,
    }  # fmt: skip
    report = start_report(method, sparsity, rank, options)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module; got {type(model).__name__}")
    selector = Selector.of(targets, ignore)
    layers, report.skipped = find_layers(model, selector)
    report.unmatched = selector.unmatched
    if not layers:
        raise ValueError(
            f"targets: no prunable weight is left with targets={targets!r}, ignore={ignore!r}; "
            "expected a class name, a glob or 're:...' that matches a Linear or Conv layer"
        )
    require_ready(layers)
    if report.options["rescale"] or refit is not None:
        for layer in layers:
            if layer.parameter.dtype == torch.float16:
                _sparsify_layer(layer, method, sparsity, rank, options)
    for layer in layers:
        row = _prune_layer(layer, method, sparsity, rank, measure, options)
        report.layers.append(row)
        if progress is not None:
            progress(row)
    report.seconds = time.perf_counter() - start
    return report


def start_report(
    method: str, sparsity: float, rank: int | None, options: dict[str, Any]
) -> PruneReport:
    """A report with no layers yet, once the arguments of `sparsify` have been checked.

    They are tried on a 1 x 1 matrix, so that a mistake shows before anything is touched.
    """
    rank = None if rank is None else check_rank(rank)
    overrides = {key: value for key, value in options.items() if key not in ("seed", "group")}
    chosen = resolve(method, **overrides)
    sparsify(torch.zeros(1, 1), method, sparsity, **options)
    used = {
        "rank": rank,
        "law_parameter": chosen.law_parameter,
        "rescale": chosen.rescale,
        "mixture": chosen.mixture,
        "refit": chosen.refit,
        "group": options["group"],
    }
    return PruneReport(chosen.name, chosen.law, float(sparsity), int(options["seed"]), used)


def _sparsify_layer(
    layer: Layer, method: str, sparsity: float, rank: int | None, options: dict[str, Any]
) -> Sparsified:
    weight = layer.parameter.detach()
    rank, stream = clamp_rank(rank, weight), stream_id(layer.name)
    try:
        return sparsify(weight, method, sparsity, rank=rank, stream=stream, **options)
    except ValueError as error:
        raise ValueError(f"model: {layer.name}: {error}") from error


def _prune_layer(
    layer: Layer,
    method: str,
    sparsity: float,
    rank: int | None,
    measure: bool,
    options: dict[str, Any],
) -> LayerReport:
    out = _sparsify_layer(layer, method, sparsity, rank, options)
    errors = out.report.errors if measure else None
    weight = layer.parameter.detach()
    row = layer_report(layer.name, weight, out.report, errors, layer.shared_with)
    with torch.no_grad():
        weight.copy_(out.weight)
    return row


def clamp_rank(rank: int | None, weight: torch.Tensor) -> int | None:
    """The rank, or min(m, n) of a weight that has less."""
    rows = weight.shape[0]
    return None if rank is None else min(rank, rows, weight.numel() // rows)
