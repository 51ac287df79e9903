"""Moments of every layer's inputs, gathered by running a model over calibration batches.

Layers that see the same inputs, such as query, key and value, make one stage and share one matrix
of moments. A pass over the batches gathers as many stages as memory allows, and ends each batch
where nothing more of them can come. What is pruned between two passes is seen by the later one, as
in SparseGPT (arXiv 2301.00774). What ran before that is kept, as far as memory allows, so that many
passes cost the depth of the network and not its square.

Which layers share their inputs, and where a pass can end, is learnt by tracing forward passes, and
holds for every batch: several passes begin with one that only traces. A single pass has no end; it
begins with what the first batches showed, goes on tracing, and is done again if that was wrong.

With `asymmetric`, a dense copy of the model runs beside it, and each layer is later fitted to what
the copy puts out there, from the inputs that the pruned model has (GPTAQ, arXiv 2504.02692).
"""

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import Any

import torch
from torch import nn

from spectral_engine.calibration.batches import (
    Forward,
    RefusedError,
    call,
    copied,
    copies,
    held,
    named_error,
)
from spectral_engine.calibration.dense_reference import DenseReference
from spectral_engine.calibration.forward import Hook, ending, evaluating, require_loaded, until_end
from spectral_engine.calibration.inputs import Call, flat
from spectral_engine.calibration.positions import Positions, Sample, rows_taken
from spectral_engine.calibration.replay import Replay
from spectral_engine.calibration.request import (
    UNREACHED,
    Calibrated,
    Calibration,
    Part,
    Request,
)
from spectral_engine.calibration.stages import (
    LONG,
    Stage,
    Wanted,
    alike,
    divided,
    features_of,
    forward_seconds,
    held_bytes,
    held_elsewhere,
    say_if_long,
    sources_of,
    stage_bytes,
    stages_of,
    too_much,
)
from spectral_engine.calibration.trace import Source, Trace
from spectral_engine.layers.find import Layer
from spectral_engine.matrix.moments import Accumulator


@dataclass
class _Sum:
    """What a pass has gathered for a stage."""

    stage: Stage
    total: Accumulator
    sample: Sample
    reached: set[int] = field(default_factory=set)


@dataclass
class Calibrator:
    """Runs a model over calibration batches, and gives its layers with their moments, in order.

    Args:
        part: the part of the model that runs, if that is not all of it.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came. Nothing of the
            model has changed then.
    """

    model: nn.Module
    requests: Sequence[Request]
    calibration: Calibration
    part: Part | None = None
    _batches: Sequence[Any] = field(init=False, repr=False)
    _passes: list[list[Stage]] = field(init=False, repr=False)
    _hidden: list[Calibrated] = field(init=False, repr=False)
    _wanted: list[Wanted] = field(init=False, repr=False)
    _unseen: list[Layer] = field(init=False, repr=False)
    _elsewhere: set[str] = field(init=False, repr=False)
    _trace: Trace = field(init=False, repr=False)
    _positions: Positions = field(init=False, repr=False)
    _run: Forward = field(init=False, repr=False)
    _seconds: list[float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for root in self._roots:
            require_loaded(root)
        self._run = self.calibration.forward or call
        self._batches = held(self.calibration.batches)
        self._positions = Positions(self.model, self.calibration.positions)
        self._hidden, self._wanted, self._passes, self._unseen = [], [], [], []
        self._elsewhere, self._seconds = set(), []
        names = {id(module): name for name, module in self.model.named_modules()}
        for request in self.requests:
            sources, reason = sources_of(request.layer, names)
            if reason is None:
                self._wanted.append((request, sources))
                if held_elsewhere(request.layer, sources):
                    self._elsewhere.add(request.layer.name)
            else:
                self._hidden.append(Calibrated(request.layer, None, reason))
        found = {source.key: source for _, sources in self._wanted for source in sources}
        self._trace = Trace(found, partial(_count, self._positions))
        if self._wanted:
            self._look(to_the_end=False)
            self._arrange()
            if len(self._passes) > 1 and not self._traced_all:
                self._look(to_the_end=True)
                self._arrange()
        self._require_memory()
        if self.part is None and self._forward_seconds() > LONG and not self._traced_all:
            self._look(to_the_end=False)  # one more: the first is slower than the others
        if self.part is None:  # who runs a model in parts says how long all of it takes
            say_if_long(
                self._passes,
                self.calibration.max_samples,
                self._forward_seconds(),
                self.calibration.asymmetric,
            )

    @property
    def _roots(self) -> Sequence[nn.Module]:
        return [self.model] if self.part is None else self.part.modules

    @property
    def bytes(self) -> int:
        """The most that moments, with working memory of a refit beside them, come to."""
        return max(map(self._held, self._passes), default=0)

    @property
    def passes(self) -> int:
        """How often the batches go through the model for moments."""
        return len(self._passes)

    # Which layers share their inputs, and which a pass gathers

    @property
    def _traced_all(self) -> bool:
        return len(self._trace.batches) == len(self._batches)

    def _look(self, *, to_the_end: bool) -> None:
        """Trace the next batches: all, or as many as it takes to reach every source."""
        with evaluating(self.model), self._trace.watching():
            for index, batch in self._copies(len(self._trace.batches)):
                start = time.perf_counter()
                with self._trace.batch():
                    self._forward(self.model, index, batch)
                self._seconds.append(time.perf_counter() - start)
                if self._trace.reached_all and not to_the_end:
                    break

    def _forward_seconds(self) -> float:
        return forward_seconds(len(self._passes), len(self._batches), self._seconds)

    def _arrange(self) -> None:
        """Stages and passes as the trace has them by now."""
        stages, self._unseen = stages_of(self._wanted, self._trace, len(self._batches))
        if self.calibration.sequential is False:
            self._passes = [stages] if stages else []
        elif self.calibration.sequential or self.calibration.asymmetric:
            self._passes = [[stage] for stage in stages]
        else:
            self._passes = divided(stages, self.calibration.max_bytes)

    def _held(self, stages: list[Stage]) -> int:
        return held_bytes(stages, 2 if self.calibration.asymmetric else 1)

    def _require_memory(self) -> None:
        if self.bytes > self.calibration.max_bytes:
            at_once = self.calibration.sequential is False
            raise too_much(self._passes, self.bytes, self.calibration.max_bytes, at_once)

    # Passes over the batches

    def __iter__(self) -> Iterator[Calibrated]:
        """Layers with their moments, and then those without.

        Passes come in the order of the forward pass, and what is done to the layers of one counts
        for the next; of a pass those with the smallest moments come first.
        """
        asymmetric = self.calibration.asymmetric
        dense = copy.deepcopy(self.model) if asymmetric and self._passes else None
        if self._passes and not self._traced_all:  # a single pass
            [stages] = self._passes
            sums = self._gather(stages, dense)
            self._arrange()
            if len(self._passes) == 1 and alike(stages, self._passes[0]):
                yield from self._given(sums)
                yield from self._without()
                return
            del sums
            self._require_memory()
        replays = self._replays(dense)
        for i, stages in enumerate(self._passes):
            unfinished = list(chain(*self._passes[i:]))
            yield from self._given(self._gather(stages, dense, replays, unfinished))
            if not self._elsewhere.isdisjoint(layer.name for one in stages for layer in one.layers):
                for replay in replays:
                    replay.forget()
        yield from self._without()

    def _replays(self, dense: nn.Module | None) -> list[Replay]:
        """For the model, and the dense one if there is one, in the memory that moments leave."""
        models = [self.model] if dense is None else [self.model, dense]
        left = self.calibration.max_bytes - self.bytes if len(self._passes) > 1 else 0
        roots = None if self.part is None else self.part.modules
        return [Replay(model, left // len(models), roots) for model in models]

    def _without(self) -> Iterator[Calibrated]:
        yield from self._hidden
        yield from (Calibrated(layer, None, UNREACHED) for layer in self._unseen)

    def _gather(
        self,
        stages: list[Stage],
        dense: nn.Module | None,
        replays: Sequence[Replay] = (),
        unfinished: Sequence[Stage] = (),
    ) -> list[_Sum]:
        """One pass over the batches.

        Args:
            stages: to gather. dense: the dense model, if its inputs are gathered too.
            replays: for the model and the dense one; without, batches are traced that are not yet.
            unfinished: the stages whose layers are still to be pruned.
        """
        stages = sorted(stages, key=stage_bytes)
        sums = [
            _Sum(
                stage,
                Accumulator(*features_of(stage)),
                Sample(stage.name, stage.rows, self.calibration.max_samples),
            )
            for stage in stages
        ]
        keys = [source.key for stage in stages for source in stage.sources]
        end = self._trace.end_of(keys) if replays else None
        known, place = len(self._trace.batches), [0]
        with ExitStack() as stack:
            stack.enter_context(evaluating(self.model))
            waiting = [source for stage in unfinished for source in self._of_stage(stage)]
            for replay in replays:
                stack.enter_context(replay.watching(waiting))
            if replays and replays[0].keeps(0) and not self._agrees(replays[0], stages, end):
                for replay in replays:
                    replay.stop()
            reference = None
            if dense is not None:
                reference = stack.enter_context(DenseReference(dense, stages, end))
            for one in sums:
                for source in one.stage.sources:
                    hook = self._adding(source, one, reference, place)
                    stack.enter_context(source.hooked(hook))
            if end is not None:
                stack.enter_context(end.hooked(ending))
            if not replays:
                stack.enter_context(self._trace.watching())
            for index, batch in self._copies():
                place[0] = index
                with ExitStack() as here:
                    for replay in replays:
                        here.enter_context(replay.batch(index))
                    if not replays and index >= known:
                        here.enter_context(self._trace.batch())
                    if reference is not None:
                        again = copied(batch, None)
                        reference.see(partial(self._forward, index=index, batch=again))
                    self._forward(self.model, index, batch)
        return sums

    def _of_stage(self, stage: Stage) -> Iterator[Source]:
        """Every source of a stage's layers, also where another one's inputs are the same."""
        names = {layer.name for layer in stage.layers}
        for request, sources in self._wanted:
            if request.layer.name in names:
                yield from sources

    def _agrees(self, replay: Replay, stages: list[Stage], end: Source | None) -> bool:
        """Whether layers see the same in the first batch with and without what is kept."""
        _, batch = next(self._copies())
        seen = []
        with DenseReference(self.model, stages, end) as reference:
            for giving in (True, False):  # or the full run would leave behind what is missed
                with replay.batch(0, giving=giving):
                    run = partial(self._forward, index=0, batch=copied(batch, None))
                    reference.see(run)
                seen.append(reference.seen)
        return len(seen[0]) == len(seen[1]) and all(map(torch.equal, *seen))

    def _adding(
        self, source: Source, one: _Sum, reference: DenseReference | None, place: list[int]
    ) -> Hook:
        """A hook that adds a call's inputs to the sums."""
        layer, inputs = one.stage.layers[0], source.inputs
        n = layer.matrix_shape[-1]

        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
            found = inputs.find(Call(args, kwargs, output))
            if found is None:
                return
            found, paired = found.detach(), inputs.paired and reference is not None
            other = reference.next_inputs(source, found) if reference and paired else None
            weights, count = _weights(self._positions, source, found), inputs.count(found)
            index, chosen = rows_taken(weights, count, one.sample, found.device)
            if count and (weights is None or bool(weights.any())):
                one.reached.add(place[0])
            dense = None if other is None else inputs.rows(other, index)
            for part in inputs.rows(found, index):
                if part.shape[-1] != n:
                    raise RefusedError(
                        f"calibration: expected {n} input features at {layer.name}; "
                        f"got {part.shape[-1]}"
                    )
                if part.shape[-2]:
                    one.total.add(part, None if dense is None else next(dense), chosen)

        return hook

    def _given(self, sums: list[_Sum]) -> Iterator[Calibrated]:
        """The layers of a pass; each stage's moments are let go of before the next one's."""
        while sums:
            one = sums.pop(0)
            stage, few = one.stage, self._few(one)
            moments = one.total.moments()
            del one
            if moments is not None and not bool(torch.isfinite(moments.scale).all()):
                raise ValueError(f"calibration: the inputs of {stage.name} hold NaN or infinity")
            corrects = moments is not None and stage.corrects_bias
            if moments is not None and corrects:
                moments = moments.centre()
            reason = None if moments is not None else UNREACHED
            for layer in stage.layers:
                yield Calibrated(layer, moments, reason, corrects, few)
            del moments

    def _few(self, one: _Sum) -> str | None:
        """What a stage saw, if that is less than other stages see or than its refits need."""
        count, n = one.total.count, features_of(one.stage)[0]
        if count and len(one.reached) < len(self._batches):
            return f"{len(one.reached)} of {len(self._batches)} batches reached it"
        if 0 < count < n:
            return f"{count:,} samples for {n:,} input features"
        return None

    def _copies(self, start: int = 0) -> Iterator[tuple[int, Any]]:
        """Copies of the batches from number `start` on, on the model's device."""
        device = next((one.device for root in self._roots for one in root.parameters()), None)
        own_forward = self.calibration.forward is not None
        batches = islice(self._batches, start, None)
        for index, batch in copies(batches, device, own_forward, start):
            self._positions.see(batch)
            yield index, batch

    def _forward(self, model: nn.Module, index: int, batch: Any) -> None:
        """Run a model over a batch, which a hook may end."""
        if self.part is not None:
            self.part.see(index)
        try:
            until_end(partial(self._run, model, batch))
        except Exception as error:
            named = named_error(error, index, batch)
            if named is error:
                raise
            raise named from error


def _weights(positions: Positions, source: Source, found: torch.Tensor) -> torch.Tensor | None:
    """The weight of each row of a call's inputs, None if all count alike."""
    if source.inputs.rows is not flat:
        return None
    return positions.of(source.name, source.inputs.slot, found, source.inputs.time_first)


def _count(positions: Positions, source: Source, found: torch.Tensor) -> int:
    """How many rows of a call's inputs count."""
    weights = _weights(positions, source, found)
    return source.inputs.count(found) if weights is None else int(weights.count_nonzero())
