"""What a pass gathers for a stage, by one process or by several, and the moments made of it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from spectral_engine.calibration.batches import RefusedError
from spectral_engine.calibration.dense_reference import DenseReference
from spectral_engine.calibration.forward import Hook
from spectral_engine.calibration.inputs import Call
from spectral_engine.calibration.positions import Sample, rows_taken
from spectral_engine.calibration.request import UNREACHED, Calibrated
from spectral_engine.calibration.stages import Stage, features_of
from spectral_engine.calibration.trace import Source
from spectral_engine.distributed.shards import gathered
from spectral_engine.layers.find import Layer
from spectral_engine.matrix.sums import Accumulator

#: From a source and a call's inputs to the weight of each row, None if all count alike.
Weigh = Callable[[Source, torch.Tensor], torch.Tensor | None]


@dataclass
class StageSum:
    """The sums over a stage's inputs, and the batches that reached it.

    batches: how many there are.
    """

    stage: Stage
    total: Accumulator
    sample: Sample
    batches: int
    reached: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, stage: Stage, most: int | None, batches: int) -> "StageSum":
        """Empty sums.

        Args:
            most: samples that are taken at most. batches: how many there are.
        """
        rows = stage.rows if most is None else min(stage.rows, most)
        total = Accumulator(*features_of(stage), rows=rows)
        return cls(stage, total, Sample(stage.name, stage.rows, most), batches)

    def adding(
        self,
        source: Source,
        weigh: Weigh,
        reference: DenseReference | None,
        place: list[int],
        is_own: Callable[[int], bool],
    ) -> Hook:
        """A hook that adds a call's inputs; or learns their scale, in another process's batch.

        Args:
            source: where it is. weigh: gives the weight of each row, None if all count alike.
            reference: the dense model, if its inputs are gathered too.
            place: the number of the batch that runs. is_own: whether it is this process's.
        """
        layer, inputs = self.stage.layers[0], source.inputs
        n = layer.matrix_shape[-1]

        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
            found = inputs.find(Call(args, kwargs, output))
            if found is None:
                return
            found = gathered(found)  # tensor parallel layers see parts
            paired = inputs.paired and reference is not None
            other = reference.next_inputs(source, found) if reference and paired else None
            weights, count = weigh(source, found), inputs.count(found)
            index, chosen = rows_taken(weights, count, self.sample, found.device, place[0])
            own = is_own(place[0])
            if own and count and (weights is None or bool(weights.any())):
                self.reached.add(place[0])
            dense = None if other is None else inputs.rows(other, index)
            for part in inputs.rows(found, index):
                if part.shape[-1] != n:
                    raise RefusedError(
                        f"calibration: expected {n} input features at {layer.name}; "
                        f"got {part.shape[-1]}"
                    )
                if part.shape[-2] and not own:
                    self.total.learn(part)
                elif part.shape[-2]:
                    self.total.add(part, None if dense is None else next(dense), chosen)

        return hook

    def calibrated(self, total: Accumulator) -> list[Calibrated]:
        """The stage's layers with the moments of these sums, which are consumed.

        Raises:
            ValueError: the inputs hold NaN or infinity.
        """
        few = self._few(total.count)
        moments = total.moments()
        if moments is not None and not bool(torch.isfinite(moments.scale).all()):
            raise ValueError(f"calibration: the inputs of {self.stage.name} hold NaN or infinity")
        corrects = moments is not None and self.stage.corrects_bias
        if moments is not None and corrects:
            moments = moments.centre()
        reason = None if moments is not None else UNREACHED
        return [Calibrated(layer, moments, reason, corrects, few) for layer in self.stage.layers]

    def _few(self, count: int) -> str | None:
        """What a stage saw, if that is less than other stages see or than its refits need."""
        n = features_of(self.stage)[0]
        if count and len(self.reached) < self.batches:
            return f"{len(self.reached)} of {self.batches} batches reached it"
        if 0 < count < n:
            return f"{count:,} samples for {n:,} input features"
        return None


@dataclass(frozen=True)
class Waiting:
    """A layer whose moments are summed over several processes once somebody needs them."""

    layer: Layer
    _sum: "SharedSum | Calibrated"

    @property
    def unreached(self) -> Calibrated | None:
        """The layer, if no batch of any process reached it."""
        if isinstance(self._sum, Calibrated):
            return self._sum if self._sum.moments is None else None
        return None if self._sum.count else Calibrated(self.layer, None, UNREACHED)

    def ready(self, owner: int | None) -> Calibrated:
        """The layer with its moments; a call of all processes, whose result is the owner's.

        Args:
            owner: its rank in the group; None gives all of them the moments.
        """
        if isinstance(self._sum, Calibrated):
            return self._sum
        return next(one for one in self._sum.ready(owner) if one.layer is self.layer)


@dataclass(frozen=True)
class SharedSum:
    """A stage's sums, of which each process of a group has its share."""

    own: StageSum
    tallies: list[tuple[int, list[float]]]
    group: Any
    cross: bool

    @property
    def count(self) -> int:
        """How many samples all processes have."""
        return sum(count for count, _ in self.tallies)

    def ready(self, owner: int | None) -> list[Calibrated]:
        """See `Waiting`; on other processes than the owner the layers come without moments."""
        total = self.own.total.together(self.tallies, self.group, owner, self.cross)
        if owner is not None and dist.get_rank(self.group) != owner:
            return [Calibrated(layer, None) for layer in self.own.stage.layers]
        return self.own.calibrated(total)


def shared_sums(sums: Sequence[StageSum], group: Any, cross: bool) -> list[SharedSum]:
    """The sums of a pass, of which each process of a group has its share.

    Args:
        sums: the same stages on every process. cross: whether dense samples were added.
    """
    told: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(told, [(one.total.tally, one.reached) for one in sums], group=group)
    found = []
    for place, one in enumerate(sums):
        one.reached = set().union(*(process[place][1] for process in told))
        found.append(SharedSum(one, [process[place][0] for process in told], group, cross))
    return found


def each_calibrated(sums: list[StageSum]) -> Iterator[Calibrated]:
    """The layers of a pass; each stage's moments are let go of before the next one's."""
    while sums:
        one = sums.pop(0)
        layers = one.calibrated(one.total)
        del one
        while layers:
            yield layers.pop(0)


def each_waiting(sums: Sequence[SharedSum]) -> list[Waiting]:
    """The layers of a pass, whose moments are still to be summed over the processes."""
    return [Waiting(layer, one) for one in sums for layer in one.own.stage.layers]
