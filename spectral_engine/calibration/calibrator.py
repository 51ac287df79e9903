"""Moments of every layer's inputs, gathered by running a model over calibration batches.

Layers that see the same inputs, such as query, key and value, make one stage and share one matrix
of moments. Sequentially, a stage's batches run through the layers pruned before it, as in SparseGPT
(arXiv 2301.00774), one pass a stage, each ended where nothing more of the stage can come; no
moments are held but one stage's. Otherwise all stages are gathered in one pass over the dense
model, and held together. By default a pass gathers as many stages, one after the other, as fit in
the memory that a sequential calibration takes: a block of a transformer, say, where one layer of
it has far larger moments than the others.

With `asymmetric`, a dense copy of the model runs beside it, and each layer is later fitted to what
the copy puts out there, from the inputs that the pruned model has (GPTAQ, arXiv 2504.02692).
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import nn

from spectral_engine.calibration.dense_reference import DenseTwin
from spectral_engine.calibration.forward import (
    Forward,
    Hook,
    call,
    ending,
    evaluating,
    finite_batches,
    until_end,
)
from spectral_engine.calibration.inputs import Call
from spectral_engine.calibration.request import Calibration, Request
from spectral_engine.calibration.stages import (
    Source,
    Stage,
    end_of,
    features_of,
    held_bytes,
    sources_of,
    stage_bytes,
    stages_of,
    trace_of,
)
from spectral_engine.layers.find import Layer
from spectral_engine.matrix.moments import Accumulator, Moments

#: Why a layer has no moments though its inputs could be seen.
UNREACHED = "no batch reached it"


@dataclass(frozen=True)
class Calibrated:
    """A layer with its moments, or with the reason why it has none.

    bias_correction: whether the layer's bias will be corrected; the moments are centred then.
    """

    layer: Layer
    moments: Moments | None
    reason: str | None = None
    bias_correction: bool = False


@dataclass
class Calibrator:
    """Runs a model over calibration batches, and gives its layers with their moments, in order.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came. Nothing of the
            model has changed then.
    """

    model: nn.Module
    requests: Sequence[Request]
    calibration: Calibration
    _passes: list[list[Stage]] = field(init=False, repr=False)
    _hidden: list[Calibrated] = field(init=False, repr=False)
    _run: Forward = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._run = self.calibration.forward or call
        self._hidden = []
        stages: list[Stage] = []
        names = {id(module): name for name, module in self.model.named_modules()}
        wanted: list[tuple[Request, list[Source]]] = []
        for request in self.requests:
            sources, reason = sources_of(request.layer, names)
            if reason is None:
                wanted.append((request, sources))
            else:
                self._hidden.append(Calibrated(request.layer, None, reason))
        if wanted:
            found = {source.key: source for _, sources in wanted for source in sources}
            trace = trace_of(self.model, found, self._checked_batches(), self._run)
            stages, unseen = stages_of(wanted, trace)
            self._hidden += [Calibrated(layer, None, UNREACHED) for layer in unseen]
        self._passes = self._divided(stages)
        self._require_memory()

    @property
    def bytes(self) -> int:
        """The most that moments, with working memory of a refit beside them, come to."""
        return max(map(self._held, self._passes), default=0)

    @property
    def passes(self) -> int:
        """How often the batches go through the model for moments."""
        return len(self._passes)

    def _divided(self, stages: list[Stage]) -> list[list[Stage]]:
        """The stages of each pass."""
        if self.calibration.sequential is False:
            return [stages] if stages else []
        alone = [[stage] for stage in stages]
        if self.calibration.sequential or self.calibration.asymmetric:
            return alone
        most = max(map(self._held, alone), default=0)
        passes: list[list[Stage]] = []
        for stage in reversed(stages):  # from the end, so that passes end as early as they can
            if passes and self._held([stage, *passes[0]]) <= most:
                passes[0].insert(0, stage)
            else:
                passes.insert(0, [stage])
        return passes

    def _held(self, stages: list[Stage]) -> int:
        return held_bytes(stages, 2 if self.calibration.asymmetric else 1)

    def __iter__(self) -> Iterator[Calibrated]:
        """Layers with their moments, and then those without.

        Passes come in the order of the forward pass, and what is done to the layers of one counts
        for the next; of a pass those with the smallest moments come first.
        """
        dense = copy.deepcopy(self.model) if self.calibration.asymmetric and self._passes else None
        for stages in self._passes:
            yield from self._gathered(sorted(stages, key=stage_bytes), dense)
        yield from self._hidden

    def _gathered(self, stages: list[Stage], dense: nn.Module | None) -> Iterator[Calibrated]:
        sums = [_accumulator(stage) for stage in stages]
        with ExitStack() as stack:
            stack.enter_context(evaluating(self.model))
            twin = None if dense is None else stack.enter_context(DenseTwin(dense, stages))
            end = end_of(stages)
            for stage, total in zip(stages, sums, strict=True):
                for source in stage.sources:
                    hook = _adding(source, stage.layers[0], total, twin)
                    stack.enter_context(source.hooked(hook))
            if end is not None:
                stack.enter_context(end.hooked(ending))
            for batch in self._checked_batches():
                if twin is not None:
                    twin.see(self._run, batch)
                until_end(partial(self._run, self.model, batch))
        while stages:
            stage, total = stages[0], sums.pop(0)
            stages = stages[1:]
            moments = total.moments()
            del total
            if moments is not None and not bool(torch.isfinite(moments.scale).all()):
                raise ValueError(
                    f"calibration: the inputs of {stage.layers[0].name} hold NaN or infinity"
                )
            if moments is not None and stage.corrects_bias:
                moments = moments.centre()
            for layer in stage.layers:
                reason = None if moments is not None else UNREACHED
                yield Calibrated(
                    layer, moments, reason, moments is not None and stage.corrects_bias
                )
            del moments

    def _checked_batches(self) -> Iterator[Any]:
        parameter = next(self.model.parameters(), None)
        return finite_batches(
            self.calibration.batches, None if parameter is None else parameter.device
        )

    def _require_memory(self) -> None:
        most = self.calibration.max_bytes
        if self.bytes > most:
            largest = max(chain(*self._passes), key=stage_bytes).layers[0]
            raise ValueError(
                f"max_bytes: moments and their working memory come to {self.bytes:,} bytes, the "
                f"largest those of {largest.name}; got {most:,}. Raise it, leave layers "
                "out with `ignore`"
                + (", or use sequential=True" if self.calibration.sequential is False else "")
            )


def _adding(source: Source, layer: Layer, total: Accumulator, twin: DenseTwin | None) -> Hook:
    """A hook that adds a call's inputs to the sums."""
    n = layer.matrices().shape[-1]

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
        found = source.inputs.find(Call(args, kwargs, output))
        if found is None:
            return
        rows = source.inputs.rows
        dense = None if twin is None else rows(twin.next_inputs(source, found))
        for part in rows(found.detach()):
            if part.shape[-1] != n:
                raise ValueError(
                    f"calibration: expected {n} input features at {layer.name}; "
                    f"got {part.shape[-1]}"
                )
            total.add(part, None if dense is None else next(dense))

    return hook


def _accumulator(stage: Stage) -> Accumulator:
    features, batch, dtype, device = features_of(stage)
    return Accumulator(features, batch, dtype, device)
