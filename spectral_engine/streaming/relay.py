"""A model run one piece at a time: those before it give what they gave, those after it end the run.

What lies between pieces, masks and positions, norms and the way of outputs into inputs, is the
model's own forward, so that every model is run as its authors wrote it.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from spectral_engine.calibration.batches import RefusedError, copies, named_error
from spectral_engine.calibration.batches import call as plain_call
from spectral_engine.calibration.forward import ending, evaluating, forward_replaced, until_end
from spectral_engine.calibration.request import Calibration
from spectral_engine.streaming.files.shelf import Shelf
from spectral_engine.streaming.pieces import IN_MEMORY, Piece

#: Runs in place of a piece: the piece, its own forward and its arguments.
InPlace = Callable[[Piece, Callable[..., Any], Any, Any], Any]


@dataclass
class Relay:
    """Runs a model up to one step of a forward pass: a call of a piece.

    Args:
        model: of whose pieces none, or that of the step, is loaded.
        pieces: see `pieces_of`.
        steps: the piece of each call, in the order of the forward pass.
        batches: of the model's inputs, the same in every pass.
        calibration: how the model is run over a batch.
        shelf: what earlier steps gave.
    """

    model: nn.Module
    pieces: Sequence[Piece]
    steps: list[Piece]
    batches: Sequence[Any]
    calibration: Calibration
    shelf: Shelf
    at: int = field(default=0, init=False)
    _live: Collection[int] = field(default=(), init=False)
    _fill: float = field(default=0.0, init=False)
    _place: int = field(default=0, init=False)
    _index: int = field(default=0, init=False)
    _instead: InPlace | None = field(default=None, init=False)

    @contextmanager
    def installed(self) -> Iterator["Relay"]:
        """Every piece waits for its turn while the block runs."""
        with ExitStack() as stack:
            for piece in self.pieces:
                forward = self._standing_in(piece, piece.module.forward)
                stack.enter_context(forward_replaced(piece.module, forward))
            yield self

    def move(self, at: int, live: Collection[int], fill: float = 0.0) -> None:
        """Runs go up to step `at` from now on.

        Args:
            live: the earlier steps whose outputs are given as they are; of the others come tensors
                of the same shape, of zeros, or with `fill` in floats.
        """
        self.at, self._live, self._fill = at, frozenset(live), fill

    # As a part that the calibrator runs

    @property
    def modules(self) -> Sequence[nn.Module]:
        """The module of the step."""
        return [self.steps[self.at].module]

    def see(self, index: int) -> None:
        """The next run is over the batch of this number."""
        self._index, self._place = index, 0

    # What a step gives

    def outputs(self, batches: Sequence[int] | None = None) -> Iterator[Any]:
        """What the step gives for each batch, or for those of these numbers.

        Raises:
            ValueError: a batch that the model does not take, or over which it calls its pieces in
                another order than over the first.
        """
        found: list[Any] = []

        def last(piece: Piece, forward: Callable[..., Any], args: Any, kwargs: Any) -> None:
            found.append(forward(*args, **kwargs))
            ending(piece.module, args, kwargs)

        wanted = range(len(self.batches)) if batches is None else batches
        with evaluating(self.model):
            for index in wanted:
                found.clear()
                self.run(index, last)
                if not found:
                    raise self._strayed("nothing more")
                yield found.pop()

    def run(self, index: int, instead: InPlace | None = None) -> None:
        """Run the model, in evaluation mode, over a batch.

        Args:
            instead: runs in place of the step's piece, or of every piece where there are no steps.
        """
        own_forward = self.calibration.forward is not None
        [(_, batch)] = copies([self.batches[index]], None, own_forward, index)
        self.see(index)
        self._instead = instead
        run = self.calibration.forward or plain_call
        try:
            until_end(lambda: run(self.model, batch))
        except Exception as error:
            named = named_error(error, index, batch)
            if named is error:
                raise
            if "meta" in str(error):
                raise RefusedError(
                    "model: a weight is used outside of the module that holds it, and one block is "
                    f"in memory at a time: {str(error).splitlines()[0]}. {IN_MEMORY}"
                ) from error
            raise named from error
        finally:
            self._instead = None

    def _standing_in(self, piece: Piece, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            place = self._place
            if self.steps and place > self.at:
                ending(piece.module, args, kwargs)
            if self.steps and self.steps[place] is not piece:
                raise self._strayed(piece.name)
            self._place += 1
            if self.steps and place < self.at:
                if place in self._live:
                    return self.shelf.get(place, self._index)
                return self.shelf.like(place, self._index, self._fill)
            if self._instead is not None:
                return self._instead(piece, forward, args, kwargs)
            return forward(*args, **kwargs)

        return run

    def _strayed(self, came: str) -> RefusedError:
        expected = self.steps[min(self._place, len(self.steps) - 1)].name
        return RefusedError(
            f"calibration: batch {self._index} calls {came} where the first batch calls "
            f"{expected}, and one block is in memory at a time. {IN_MEMORY}"
        )


def same_outputs(one: Any, other: Any) -> bool:
    """Whether two outputs are nested alike and equal, entry by entry."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, tuple | list):
        return (
            type(one) is type(other)
            and len(one) == len(other)
            and all(map(same_outputs, one, other))
        )
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(same_outputs(one[key], other[key]) for key in one)
        )
    return one is None and other is None
