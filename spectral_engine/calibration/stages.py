"""Which layers see the same inputs, in which order, what memory and time their moments take.

Layers that see the same inputs, such as query, key and value, make one stage.
"""

import math
import time
import warnings
from dataclasses import dataclass
from operator import itemgetter

import torch
from spectral_kernels.spectra import full_precision

from spectral_engine.calibration.inputs import inputs_of
from spectral_engine.calibration.request import Request
from spectral_engine.calibration.trace import Source, Trace
from spectral_engine.layers.bias import bias_of
from spectral_engine.layers.find import Layer
from spectral_engine.matrix.sums import moment_bytes, sum_bytes
from spectral_engine.recipe.refits import NO_REFIT, Refit, Workspace, workspace_of

#: Seconds from which on they are said.
LONG = 60.0
#: Additions and products a second that any machine has; under it nothing is measured.
_SLOWEST = 2e9
_PROBE = 512


@dataclass
class Stage:
    """Layers of the same inputs.

    sources: where the inputs are seen; several for a weight that several modules share
    corrects_bias: whether each layer has a bias of its own, to be corrected
    workspace: the memory that the layers' refits work in, the largest of them
    rows: about how many samples there are in all batches
    """

    layers: list[Layer]
    sources: list[Source]
    corrects_bias: bool = False
    workspace: Workspace = NO_REFIT
    rows: int = 0

    @property
    def name(self) -> str:
        """That of its first layer."""
        return self.layers[0].name


#: A request, and where the inputs of its layer can be seen.
Wanted = tuple[Request, list[Source]]


def sources_of(layer: Layer, names: dict[int, str]) -> tuple[list[Source], str | None]:
    """Where a layer's inputs are seen, at each module that holds it, or why they are not."""
    sources, reason = [], None
    for module, local_name in layer.owners or ((layer.module, layer.local_name),):
        found = inputs_of(module, local_name, layer.view.part)
        if isinstance(found, str):
            reason = found
        else:
            sources.append(Source(module, names[id(module)], found))
    return sources, None if sources else reason


def held_elsewhere(layer: Layer, sources: list[Source]) -> bool:
    """Whether a module holds the weight too whose inputs are not seen, such as an embedding."""
    seen = {id(source.module) for source in sources}
    return any(id(module) not in seen for module, _ in (*layer.holders, *layer.owners))


def stages_of(wanted: list[Wanted], trace: Trace, batches: int) -> tuple[list[Stage], list[Layer]]:
    """Stages in the order in which forward passes come to them, and layers they never do.

    Args:
        trace: of some of the batches, or of all.
        batches: how many there are.
    """
    sources = {source.key: source for _, found in wanted for source in found}
    groups: dict[tuple[object, ...], Stage] = {}
    unseen = []
    for (layer, refit, low_rank), found in wanted:
        reached = [source for source in found if source.key in trace.calls]
        if not reached:
            unseen.append(layer)
            continue
        if len(reached) == 1:
            reached = [sources[trace.origin(reached[0].key)]]
        corrects = corrects_bias(layer, refit)
        key = (*sorted(source.key for source in reached), corrects)
        stage = groups.setdefault(key, Stage([], reached, corrects))
        stage.layers.append(layer)
        stage.workspace = Workspace(*map(max, stage.workspace, workspace_of(refit, low_rank)))
        rows = sum(trace.rows[source.key] for source in reached)
        stage.rows = -(-rows * batches // len(trace.batches))
    stages = sorted(groups.values(), key=lambda stage: trace.place(stage.sources[0].key))
    return stages, unseen


def alike(some: list[Stage], others: list[Stage]) -> bool:
    """Whether these are the same layers, seen at the same sources."""

    def told(stages: list[Stage]) -> list[tuple[object, ...]]:
        return [
            ([layer.name for layer in stage.layers], [source.key for source in stage.sources])
            for stage in stages
        ]

    return told(some) == told(others)


def corrects_bias(layer: Layer, refit: Refit | None) -> bool:
    """Whether a bias of the layer's own will be corrected, so that its mean output stays."""
    wanted = refit is not None and refit.bias_correction
    return wanted and len(layer.owners) < 2 and bias_of(layer) is not None


def features_of(stage: Stage) -> tuple[int, int | None, torch.dtype, torch.device]:
    """(n, matrices of the batch or None, dtype, device) of what a stage's inputs belong to."""
    layer = stage.layers[0]
    *batch, _, n = layer.matrix_shape
    return n, batch[0] if batch else None, layer.parameter.dtype, layer.parameter.device


def stage_bytes(stage: Stage) -> int:
    """Bytes of the sums of a stage's second moments."""
    return sum_bytes(*features_of(stage)[:2])


def _result_bytes(stage: Stage) -> int:
    """Bytes of the second moments of a stage."""
    return moment_bytes(*features_of(stage)[:3])


def held_bytes(stages: list[Stage], moments_per_stage: int = 1) -> int:
    """Bytes of one pass: at first the moments of all stages, then of fewer, the smallest first.

    The memory that refits work in beside them counts. An asymmetric calibration has two matrices of
    moments a stage.
    """
    return _most([_sizes(stage, moments_per_stage) for stage in stages])


def refit_bytes(stage: Stage) -> int:
    """Bytes of a stage's moments, once they are there, and of the memory that refits work in."""
    result, workspace = _result_bytes(stage), stage.workspace
    return result + workspace.copies * result + workspace.weights * _weight_bytes(stage)


def divided(stages: list[Stage], max_bytes: int) -> list[list[Stage]]:
    """The stages of each pass, as few passes as fit in that memory.

    Filled from the end, so that passes end as early as they can.
    """
    passes: list[list[Stage]] = []
    sizes: list[tuple[int, int]] = []
    for stage in reversed(stages):
        size = _sizes(stage, 1)
        if passes and _most([size, *sizes]) <= max_bytes:
            passes[0].insert(0, stage)
            sizes.append(size)
        else:
            passes.insert(0, [stage])
            sizes = [size]
    return passes


def too_much(passes: list[list[Stage]], needed: int, max_bytes: int, at_once: bool) -> ValueError:
    """The error of passes that need more than `max_bytes`; `at_once`: because there is only one."""
    largest = max((stage for stages in passes for stage in stages), key=stage_bytes)
    return ValueError(
        f"max_bytes: moments and their working memory come to {needed:,} bytes, the largest those "
        f"of {largest.name}; got {max_bytes:,}. Raise it, leave layers out with `ignore`"
        + (", or use sequential=True" if at_once else "")
    )


def _sizes(stage: Stage, moments_per_stage: int) -> tuple[int, int]:
    """Bytes of a stage's sums, and the most that its moments and refits take beyond these."""
    sums, result = (moments_per_stage * size(stage) for size in (stage_bytes, _result_bytes))
    work = stage.workspace.copies * result + stage.workspace.weights * _weight_bytes(stage)
    # Sums are let go of once the moments are made of them, which are smaller.
    return sums, max(result, result + work - sums)


def _most(sizes: list[tuple[int, int]]) -> int:
    most, left = 0, sum(size for size, _ in sizes)
    for size, work in sorted(sizes, key=itemgetter(0)):
        most, left = max(most, left + work), left - size
    return most


def _weight_bytes(stage: Stage) -> int:
    """Bytes of the largest weight of a stage in the precision that refits work in."""
    itemsize = 8 if features_of(stage)[2] == torch.float64 else 4
    return itemsize * max(math.prod(layer.shape) for layer in stage.layers)


def forward_seconds(passes: int, batches: int, seconds: list[float]) -> float:
    """About how long all forward passes will take, from what some batches took.

    Several passes trace all batches, go through the network about once more, from what is kept of
    it, and run the first batch in each from the start, half through the network.
    """
    if not passes:
        return 0.0
    times = 1.0 if passes == 1 else 2.0 + passes / 2 / batches
    later = seconds[1:] or seconds  # the first batch is slower than the others
    return times * batches * sum(later) / len(later)


def say_if_long(
    passes: list[list[Stage]], max_samples: int | None, forward: float, asymmetric: bool
) -> None:
    """Warn, with the layers that take longest, where a calibration will take over a minute.

    Args:
        passes: the stages of each.
        max_samples: see `Calibration`.
        forward: seconds that the batches take through the model, in all passes.
        asymmetric: whether a dense model runs beside it, and its moments are gathered.
    """
    running = forward * (2 if asymmetric else 1)
    work = {}
    for stage in (stage for stages in passes for stage in stages):
        n, batch, _, device = features_of(stage)
        samples = stage.rows if max_samples is None else min(stage.rows, max_samples)
        work[stage.name] = (samples * n * n * (batch or 1) * (3 if asymmetric else 1), samples, n)
        if device.type != "cpu":
            return  # not timed: a device answers before it is done
    if running + sum(flops for flops, _, _ in work.values()) / _SLOWEST <= LONG:
        return
    rate = _rate()
    seconds = running + sum(flops for flops, _, _ in work.values()) / rate
    if seconds <= LONG:
        return
    longest = sorted(work.items(), key=lambda item: -item[1][0])[:3]
    layers = ", ".join(
        f"{name} {_minutes(flops / rate)} ({samples:,} samples of {n:,} features)"
        for name, (flops, samples, n) in longest
    )
    warnings.warn(
        f"calibration: about {_minutes(seconds)}, {_minutes(running)} of it in the model's own "
        f"forward; the longest sums of layers: {layers}. Fewer batches, or max_samples, make it "
        "shorter",
        stacklevel=2,
    )


def _rate() -> float:
    """Additions and products a second in the sums of moments, on this machine now."""
    x = torch.ones(_PROBE, _PROBE)
    total = torch.zeros(_PROBE, _PROBE)
    best = float("inf")
    with full_precision(torch):
        for _ in range(3):
            start = time.perf_counter()
            total.addmm_(x.mT, x)
            best = min(best, time.perf_counter() - start)
    return 2 * _PROBE**3 / best


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
