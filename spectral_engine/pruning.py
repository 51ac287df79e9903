"""Prune a model in place."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from spectral_kernels import check_weight, entries_to_keep, stream_id
from torch import nn

from spectral_engine.layers import Layer, find_layers, patterns, require_ready
from spectral_engine.methods import Method, resolve
from spectral_engine.report import LayerReport, PruneReport, layer_report
from spectral_engine.single import sparsify


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
            several modules share is pruned once.
        method, sparsity, law, law_parameter, rescale, mixture, refit, group: see `sparsify`.
        targets, ignore: class names ("Linear"), globs over names ("encoder.*") or "re:..."; by
            default every prunable weight. What is left alone is in `report.skipped`, with the
            reason.
        rank: of spectral scores; a layer with min(m, n) under it uses min(m, n).
        seed: with the parameter's name, whose hash is the stream, it fixes all draws.
        measure: also compare spectra before and after, which takes longer than pruning.
        progress: called with each layer's row as it is done.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came. All arguments
            and weights are checked before the first weight is changed.
    """
    start = time.perf_counter()
    overrides = {
        "law": law, "law_parameter": law_parameter, "rescale": rescale, "mixture": mixture,
        "refit": refit,
    }  # fmt: skip
    chosen, options = check_options(method, sparsity, rank, overrides, seed=seed, group=group)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module; got {type(model).__name__}")
    wanted = None if targets is None else patterns(targets, "targets")
    unwanted = [] if ignore is None else patterns(ignore, "ignore")
    layers, skipped = find_layers(model, wanted, unwanted)
    if not layers:
        raise ValueError(
            f"targets: no prunable weight is left with targets={targets!r}, ignore={ignore!r}; "
            "expected a class name, a glob or 're:...' that matches a Linear or Conv layer"
        )
    require_ready(layers)
    report = PruneReport(chosen.name, chosen.law, float(sparsity), seed, skipped=skipped)
    for layer in layers:
        row = _prune_layer(layer, method, sparsity, rank, measure, options)
        report.layers.append(row)
        if progress is not None:
            progress(row)
    report.seconds = time.perf_counter() - start
    return report


def check_options(
    method: str, sparsity: float, rank: int | None, overrides: dict[str, Any],
    *, seed: int, group: str,
) -> tuple[Method, dict[str, Any]]:  # fmt: skip
    """The method that the options make, and the options of `sparsify`; all are checked.

    They are tried on a 1 x 1 matrix, so that a mistake shows before anything is touched.
    """
    chosen = resolve(method, **overrides)
    options = {**overrides, "seed": seed, "group": group}
    if rank is not None:
        if isinstance(rank, bool) or not isinstance(rank, int):
            raise TypeError(f"rank: expected an integer; got {type(rank).__name__}")
        if rank < 1:
            raise ValueError(f"rank: expected at least 1; got {rank}")
    entries_to_keep(1, sparsity)
    sparsify(torch.zeros(1, 1), method, sparsity, **options)
    return chosen, options


def _prune_layer(
    layer: Layer,
    method: str,
    sparsity: float,
    rank: int | None,
    measure: bool,
    options: dict[str, Any],
) -> LayerReport:
    weight = layer.parameter.detach()
    check_weight(weight, layer.name)
    out = sparsify(
        weight,
        method,
        sparsity,
        rank=clamp_rank(rank, weight),
        stream=stream_id(layer.name),
        **options,
    )
    row = layer_report(
        layer.name,
        weight,
        out.report,
        out.report.errors if measure else None,
        layer.shared_with,
    )
    with torch.no_grad():
        weight.copy_(out.weight)
    return row


def clamp_rank(rank: int | None, weight: torch.Tensor) -> int | None:
    """The rank, or min(m, n) of a weight that has less."""
    rows = weight.shape[0]
    return None if rank is None else min(rank, rows, weight.numel() // rows)
