"""In which order a forward pass comes to the inputs of a model's layers, and which are the same.

Layers that see the same inputs, such as query, key and value, make one stage.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import torch
from torch import nn

from spectral_engine.calibration.forward import Hook, evaluating, hooked
from spectral_engine.calibration.inputs import Call, Inputs, inputs_of
from spectral_engine.calibration.request import Request
from spectral_engine.layers.bias import bias_of
from spectral_engine.layers.find import Layer
from spectral_engine.matrix.moments import moment_bytes
from spectral_engine.recipe.refits import NO_REFIT, Refit, Workspace, workspace_of

Key = tuple[int, str]


@dataclass(frozen=True)
class Source:
    """Inputs that are seen at a module, called `name` in the model."""

    module: nn.Module
    name: str
    inputs: Inputs

    @property
    def key(self) -> Key:
        """Equal for the same inputs of the same module."""
        return id(self.module), self.inputs.slot

    def hooked(self, hook: Hook, module: nn.Module | None = None) -> AbstractContextManager[None]:
        """The hook, where the inputs can be seen; at that place of another module if given."""
        return hooked(module or self.module, hook, self.inputs.after)


@dataclass
class Stage:
    """Layers of the same inputs.

    sources: where the inputs are seen; several for a weight that several modules share
    corrects_bias: whether each layer has a bias of its own, to be corrected
    workspace: the memory that the layers' refits work in, the largest of them
    end: a source that is reached only after all inputs have been seen, with its place among the
        calls of a forward pass; None if there is none
    """

    layers: list[Layer]
    sources: list[Source]
    corrects_bias: bool = False
    workspace: Workspace = NO_REFIT
    end: tuple[int, Source] | None = None


@dataclass
class Trace:
    """The calls of sources in forward passes, in order; `first` of them were in the first batch."""

    calls: list[Key] = field(default_factory=list)
    place: dict[Key, int] = field(default_factory=dict)
    first: int = 0
    _alike: dict[Key, dict[Key, int]] = field(default_factory=dict)
    _last: tuple[Any, ...] = ()
    _previous: Key | None = None

    def seeing(self, source: Source) -> Hook:
        """A hook that notes a call, and whether its input was also that of the call before."""

        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
            found = source.inputs.find(Call(args, kwargs, output))
            if found is None:
                return
            if not source.inputs.after:  # else nobody else has them
                self._compare(source, found)
            self.place.setdefault(source.key, len(self.calls))
            self.calls.append(source.key)

        return hook

    def _compare(self, source: Source, found: torch.Tensor) -> None:
        version = None if found.is_inference() else found._version
        now = (source.inputs.rows, version, found)
        previous, self._previous = self._previous, source.key
        same = bool(self._last) and now[:2] == self._last[:2] and found is self._last[2]
        if same and previous is not None and previous != source.key:
            counts = self._alike.setdefault(source.key, {})
            counts[previous] = counts.get(previous, 0) + 1
        self._last = now

    def forget_tensors(self) -> None:
        """Let go of the last input."""
        self._last = ()

    def origin(self, key: Key) -> Key:
        """The first source that has had the very same inputs in every call."""
        while True:
            for other, count in self._alike.get(key, {}).items():
                if count == self.calls.count(key) == self.calls.count(other):
                    break
            else:
                return key
            if self.place[other] > self.place[key]:
                return key
            key = other


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


def trace_of(
    model: nn.Module,
    sources: dict[Key, Source],
    batches: Iterable[Any],
    run: Callable[[nn.Module, Any], Any],
) -> Trace:
    """The calls of the first batch, and of as many more as it takes to reach every source."""
    trace = Trace()
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for source in sources.values():
            stack.enter_context(source.hooked(trace.seeing(source)))
        for batch in batches:
            run(model, batch)
            trace.forget_tensors()
            trace.first = trace.first or len(trace.calls)
            if sources.keys() <= trace.place.keys():
                break
    return trace


def stages_of(
    wanted: list[tuple[Request, list[Source]]], trace: Trace
) -> tuple[list[Stage], list[Layer]]:
    """Stages in the order in which a forward pass comes to them, and layers it never does."""
    sources = {source.key: source for _, found in wanted for source in found}
    groups: dict[tuple[Any, ...], Stage] = {}
    unseen = []
    for (layer, refit), found in wanted:
        reached = [source for source in found if source.key in trace.place]
        if not reached:
            unseen.append(layer)
            continue
        if len(reached) == 1:
            reached = [sources[trace.origin(reached[0].key)]]
        corrects = corrects_bias(layer, refit)
        key = (*sorted(source.key for source in reached), corrects)
        stage = groups.setdefault(key, Stage([], reached, corrects))
        stage.layers.append(layer)
        stage.workspace = Workspace(*map(max, stage.workspace, workspace_of(refit)))
    stages = sorted(groups.values(), key=lambda stage: trace.place[stage.sources[0].key])
    origins = {key: trace.origin(key) for key in trace.place}
    calls = trace.calls[: trace.first]
    for stage in stages:
        own = {source.key for source in stage.sources}
        seen = [i for i, key in enumerate(calls) if key in own or origins[key] in own]
        after = calls[seen[-1] + 1 :] if seen else []
        first = next((key for key in after if trace.place[key] > seen[-1]), None)
        stage.end = None if first is None else (trace.place[first], sources[first])
    return stages, unseen


def corrects_bias(layer: Layer, refit: Refit | None) -> bool:
    """Whether a bias of the layer's own will be corrected, so that its mean output stays."""
    wanted = refit is not None and refit.bias_correction
    return wanted and len(layer.owners) < 2 and bias_of(layer) is not None


def end_of(stages: Iterable[Stage]) -> Source | None:
    """A source that is reached only after all inputs of these stages have been seen, if any."""
    ends = [stage.end for stage in stages]
    last = None if None in ends else max(filter(None, ends), key=itemgetter(0))
    return None if last is None else last[1]


def features_of(stage: Stage) -> tuple[int, int | None, torch.dtype, torch.device]:
    """(n, matrices of the batch or None, dtype, device) of what a stage's inputs belong to."""
    matrices = stage.layers[0].matrices()
    batch = matrices.shape[0] if matrices.ndim == 3 else None
    return matrices.shape[-1], batch, matrices.dtype, matrices.device


def stage_bytes(stage: Stage) -> int:
    """Bytes of the second moments of a stage."""
    return moment_bytes(*features_of(stage)[:3])


def held_bytes(stages: list[Stage], moments_per_stage: int = 1) -> int:
    """Bytes of one pass: at first the moments of all stages, then of fewer, the smallest first.

    The memory that refits work in beside them counts. An asymmetric calibration has two matrices of
    moments a stage.
    """
    left = moments_per_stage * sum(map(stage_bytes, stages))
    most = 0
    for stage in sorted(stages, key=stage_bytes):
        size = moments_per_stage * stage_bytes(stage)
        work = stage.workspace.copies * size + stage.workspace.weights * _weight_bytes(stage)
        most, left = max(most, left + work), left - size
    return most


def _weight_bytes(stage: Stage) -> int:
    """Bytes of the largest weight of a stage in the precision that refits work in."""
    itemsize = 8 if features_of(stage)[2] == torch.float64 else 4
    return itemsize * max(layer.weight.numel() for layer in stage.layers)
