"""What a module is given and gives, over all batches, in a model that runs as far as that module.

What ran before is kept from one module to the next (`calibration.replay`), so that all blocks of a
model, one after the other, cost little more than one pass over it.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
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
    tensors_of,
)
from spectral_engine.calibration.forward import Hook, ending, evaluating, hooked, until_end
from spectral_engine.calibration.inputs import Call, Inputs, flat, flat_count
from spectral_engine.calibration.replay import Replay
from spectral_engine.calibration.request import Calibration
from spectral_engine.calibration.trace import Source


class Runner:
    """A model that is run over the batches again and again, each time as far as one module.

    max_bytes: the most that what is kept of earlier modules may take.
    """

    def __init__(self, model: nn.Module, calibration: Calibration, max_bytes: int) -> None:
        self.model = model
        self._run: Forward = calibration.forward or call
        self._own_forward = calibration.forward is not None
        self._batches = held(calibration.batches)
        self._replay = Replay(model, max_bytes)

    def counts(self, names: Iterable[str]) -> dict[str, int]:
        """How often the first batch calls each of these modules."""
        found = dict.fromkeys(names, 0)

        def noting(name: str) -> Hook:
            def note(*_: Any) -> None:
                found[name] += 1

            return note

        with ExitStack() as stack:
            stack.enter_context(evaluating(self.model))
            for name in found:
                stack.enter_context(hooked(self.model.get_submodule(name), noting(name)))
            for index, batch in self._copies(1):
                self._forward(index, batch)
        return found

    def check(self, name: str, *, after: bool, once: bool) -> None:
        """Keep nothing any more if the module sees another first batch for what is kept."""
        seen = [
            list(tensors_of([call for _, calls in found for call in calls]))
            for found in (
                self.calls(name, after=after, once=once, kept=kept, only=1)
                for kept in (True, False)
            )
        ]
        if len(seen[0]) != len(seen[1]) or not all(map(torch.equal, *seen)):
            self._replay.stop()

    def calls(
        self,
        name: str,
        *,
        after: bool,
        once: bool,
        kept: bool = True,
        only: int | None = None,
    ) -> list[tuple[Any, list[Call]]]:
        """Each batch, and copies of what a module is given in it; with `after` of what it gives.

        Args:
            name: of the module in the model.
            once: whether a batch calls it once at most, so that the pass can end there.
            kept: whether to take what is kept of earlier modules.
            only: the number of batches, None for all.
        """
        module = self.model.get_submodule(name)
        seen: list[tuple[Any, list[Call]]] = []

        def keep(_: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
            if after:
                seen[-1][1].append(Call((), {}, copied(output, None)))
            else:
                args, kwargs = copied((tuple(args), dict(kwargs)), None)
                seen[-1][1].append(Call(args, kwargs))

        place = Source(module, name, Inputs("", lambda _: None, flat, flat_count))
        with ExitStack() as stack:
            stack.enter_context(evaluating(self.model))
            stack.enter_context(self._replay.watching([] if after else [place]))
            stack.enter_context(hooked(module, keep, after))
            if once:
                stack.enter_context(hooked(module, ending, after))
            for index, batch in self._copies(only):
                seen.append((batch, []))
                with self._replay.batch(index, giving=kept):
                    self._forward(index, batch)
        return seen

    def _copies(self, only: int | None) -> Iterator[tuple[int, Any]]:
        parameter = next(self.model.parameters(), None)
        device = None if parameter is None else parameter.device
        return copies(self._batches[:only], device, self._own_forward)

    def _forward(self, index: int, batch: Any) -> None:
        try:
            until_end(partial(self._run, self.model, batch))
        except Exception as error:
            named = named_error(error, index, batch)
            if named is error:
                raise
            raise named from error
