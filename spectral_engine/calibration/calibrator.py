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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import Any

import torch
from torch import nn

from spectral_engine.calibration.batches import (
    Forward,
    call,
    copied,
    copies,
    held,
    named_error,
)
from spectral_engine.calibration.dense_reference import DenseReference
from spectral_engine.calibration.forward import ending, evaluating, require_loaded, until_end
from spectral_engine.calibration.inputs import flat
from spectral_engine.calibration.positions import Positions
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
    forward_seconds,
    held_bytes,
    held_elsewhere,
    say_if_long,
    sources_of,
    stage_bytes,
    stages_of,
    too_much,
)
from spectral_engine.calibration.sums.stage_sums import (
    SharedSum,
    StageSum,
    Waiting,
    each_calibrated,
    each_waiting,
    shared_sums,
)
from spectral_engine.calibration.trace import Source, Trace
from spectral_engine.distributed.groups import sharing_group
from spectral_engine.distributed.owners import errors_of_all, gathered_objects, is_own
from spectral_engine.distributed.shards import is_sharded, settle
from spectral_engine.layers.find import Layer


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
    _sharded: bool = field(init=False, repr=False)
    _group: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._sharded = any(is_sharded(parameter) for parameter in self.model.parameters())
        if self._sharded and self.calibration.asymmetric:
            raise ValueError(
                "asymmetric: expected a model that can be copied; got one that is sharded"
            )
        # Processes of a sharded model run all batches together.
        self._group = None if self._sharded else sharing_group()
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
    def shares(self) -> bool:
        """Whether several processes share the batches out; see `waiting`."""
        return self._group is not None

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
        """Trace the next batches: all, or as many as it takes to reach every source.

        Where processes share the batches out, each traces its share of all, but all of the first.
        """
        trace = self._trace.fresh() if to_the_end else self._trace
        with evaluating(self.model), trace.watching(), errors_of_all(self._group):
            for index, batch in self._copies(len(self._trace.batches), own=lambda: to_the_end):
                start = time.perf_counter()
                with trace.batch():
                    self._forward(self.model, index, batch)
                self._seconds.append(time.perf_counter() - start)
                if self._trace.reached_all and not to_the_end:
                    break
        settle(self.model)
        if to_the_end:
            self._trace.extend(gathered_objects(trace.told(), self._group))

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
        for sums in self._passes_over():
            if self._group is None:
                yield from each_calibrated(sums)
            else:
                for shared in self._summed(sums):
                    yield from shared.ready(None)
        yield from self._without()

    def waiting(self) -> Iterator[list[Waiting]]:
        """The layers of each pass, to be done before the next one, and those without moments.

        Only where processes share the batches out; all of them make the same calls.
        """
        for sums in self._passes_over():
            yield each_waiting(self._summed(sums))
        yield [Waiting(one.layer, one) for one in self._without()]

    def _summed(self, sums: list[StageSum]) -> list[SharedSum]:
        return shared_sums(sums, self._group, self.calibration.asymmetric)

    def _passes_over(self) -> Iterator[list[StageSum]]:
        """What each pass gathers; of this process's share of the batches."""
        asymmetric = self.calibration.asymmetric
        dense = copy.deepcopy(self.model) if asymmetric and self._passes else None
        if self._passes and not self._traced_all:  # a single pass
            [stages] = self._passes
            sums = self._gather(stages, dense)
            self._arrange()
            if len(self._passes) == 1 and alike(stages, self._passes[0]):
                yield sums
                return
            del sums
            self._require_memory()
        replays = self._replays(dense)
        for i, stages in enumerate(self._passes):
            unfinished = list(chain(*self._passes[i:]))
            yield self._gather(stages, dense, replays, unfinished)
            if not self._elsewhere.isdisjoint(layer.name for one in stages for layer in one.layers):
                for replay in replays:
                    replay.forget()

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
    ) -> list[StageSum]:
        """One pass over the batches.

        Args:
            stages: to gather. dense: the dense model, if its inputs are gathered too.
            replays: for the model and the dense one; without, batches are traced that are not yet.
            unfinished: the stages whose layers are still to be pruned.
        """
        stages = sorted(stages, key=stage_bytes)
        most = self.calibration.max_samples
        sums = [StageSum.of(stage, most, len(self._batches)) for stage in stages]
        keys = [source.key for stage in stages for source in stage.sources]
        end = self._trace.end_of(keys) if replays and not self._sharded else None
        known, place, trace = len(self._trace.batches), [0], self._trace.fresh()
        with ExitStack() as stack:
            stack.enter_context(evaluating(self.model))
            waiting = [source for stage in unfinished for source in self._of_stage(stage)]
            for replay in replays:
                stack.enter_context(replay.watching(waiting))
            if replays and not self._agrees(replays[0], stages, end):
                for replay in replays:
                    replay.stop()
            reference = None
            if dense is not None:
                reference = stack.enter_context(DenseReference(dense, stages, end))
            weigh, own = partial(_weights, self._positions), partial(is_own, group=self._group)
            for one in sums:
                for source in one.stage.sources:
                    hook = one.adding(source, weigh, reference, place, own)
                    stack.enter_context(source.hooked(hook))
            if end is not None:
                stack.enter_context(end.hooked(ending))
            if not replays:
                stack.enter_context(trace.watching())
            stack.enter_context(errors_of_all(self._group))
            for index, batch in self._copies(own=lambda: all(one.total.has_scale for one in sums)):
                place[0] = index
                with ExitStack() as here:
                    for replay in replays:
                        here.enter_context(replay.batch(index))
                    if not replays and index >= known and own(index):
                        here.enter_context(trace.batch())
                    if reference is not None:
                        again = copied(batch, None)
                        reference.see(partial(self._forward, index=index, batch=again))
                    self._forward(self.model, index, batch)
        settle(self.model)
        if not replays:
            self._trace.extend(gathered_objects(trace.told(), self._group))
        return sums

    def _of_stage(self, stage: Stage) -> Iterator[Source]:
        """Every source of a stage's layers, also where another one's inputs are the same."""
        names = {layer.name for layer in stage.layers}
        for request, sources in self._wanted:
            if request.layer.name in names:
                yield from sources

    def _agrees(self, replay: Replay, stages: list[Stage], end: Source | None) -> bool:
        """Whether layers see the same in the first batch with and without what is kept.

        It is the first of all, which one process has.
        """
        return bool(gathered_objects(self._agrees_here(replay, stages, end), self._group)[0])

    def _agrees_here(self, replay: Replay, stages: list[Stage], end: Source | None) -> bool:
        if not replay.keeps(0):
            return True
        _, batch = next(self._copies())
        seen = []
        with DenseReference(self.model, stages, end) as reference:
            for giving in (True, False):  # or the full run would leave behind what is missed
                with replay.batch(0, giving=giving):
                    run = partial(self._forward, index=0, batch=copied(batch, None))
                    reference.see(run)
                seen.append(reference.seen)
        return len(seen[0]) == len(seen[1]) and all(map(torch.equal, *seen))

    def _copies(
        self, start: int = 0, *, own: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[int, Any]]:
        """Copies of the batches from number `start` on, on the model's device.

        Args:
            own: whether, by now, only this process's share is wanted, where several share them out.
        """
        device = next((one.device for root in self._roots for one in root.parameters()), None)
        own_forward = self.calibration.forward is not None
        for number, given in enumerate(islice(self._batches, start, None), start):
            if own() and not is_own(number, self._group):
                continue
            for index, batch in copies([given], device, own_forward, number):
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
