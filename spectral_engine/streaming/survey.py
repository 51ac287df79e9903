"""In which order a model calls its pieces, and which outputs each of them needs: one batch, once.

The model runs over the first batch as a whole, each piece loaded when it is called and let go of
afterwards. Then each piece runs by itself, from what the others gave. Where it gives the very same,
nothing but those outputs passes between pieces, and the blocks can be pruned one at a time. Which
outputs count is found out on the way: NaN stands in for the others.
"""

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from spectral_engine.calibration.forward import ending, evaluating
from spectral_engine.streaming.pieces import IN_MEMORY, Piece
from spectral_engine.streaming.relay import Relay, same_outputs

#: Loads a piece for as long as a block runs.
Load = Callable[[Piece], AbstractContextManager[None]]


@dataclass
class Survey:
    """What a forward pass does.

    steps: the piece of each call, in order.
    needs: for each step, the earlier steps of whose outputs it makes something.
    """

    steps: list[Piece]
    needs: list[frozenset[int]]


def surveyed(relay: Relay, load: Load, wanted: Collection[Piece]) -> Survey:
    """Run a model over its first batch, as a whole and piece by piece.

    Both end where nothing that is wanted can come any more: an output head that is not pruned is
    not run.

    Args:
        relay: installed, with no steps yet; they are set. Its shelf has room for one batch.
        load: of a piece.
        wanted: the pieces that are pruned.

    Raises:
        ValueError: a piece gives something else when it runs by itself, so that more than outputs
            passes between pieces; or one needs weights that are not its own.
    """
    shelf, reference = relay.shelf, _whole(relay, load, wanted)
    needs: list[frozenset[int]] = []
    for at, piece in enumerate(relay.steps):
        with load(piece):
            needs.append(_needs(relay, at, needs[-1] if needs else frozenset()))
    for at in range(len(reference)):
        shelf.forget(at)
    return Survey(relay.steps, needs)


def _whole(relay: Relay, load: Load, wanted: Collection[Piece]) -> list[Piece]:
    """Every piece's output on the shelf, by one run of the whole model; sets the steps."""
    called: list[Piece] = []

    def loaded(piece: Piece, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if piece not in wanted and all(one in called for one in wanted):
            ending(piece.module, args, kwargs)
        with load(piece):
            output = forward(*args, **kwargs)
        with relay.shelf.writing(len(called)) as writer:
            writer.put(0, output, piece.name)
        called.append(piece)
        return output

    with evaluating(relay.model):
        relay.run(0, loaded)
    relay.steps[:] = called
    return called


def _needs(relay: Relay, at: int, before: Collection[int]) -> frozenset[int]:
    """The earlier steps that a step makes something of; its piece is loaded."""
    reference = relay.shelf.get(at, 0)

    def enough(live: Collection[int]) -> bool:
        relay.move(at, live, fill=torch.nan)
        [found] = relay.outputs([0])
        return same_outputs(found, reference)

    for guess in (frozenset(), frozenset({at - 1}), frozenset({at - 1, *before})):
        if all(place >= 0 for place in guess) and enough(guess):
            return _fewest(enough, guess) if len(guess) > 1 else guess
    everything = frozenset(range(at))
    if not enough(everything):
        raise ValueError(
            f"model: {relay.steps[at].name} gives something else when it runs by itself: it shares "
            f"more with other blocks than what they give. {IN_MEMORY}"
        )
    return _fewest(enough, everything)


def _fewest(enough: Callable[[Collection[int]], bool], live: frozenset[int]) -> frozenset[int]:
    """Those of these steps that cannot be done without."""
    for place in sorted(live):
        fewer = live - {place}
        if enough(fewer):
            live = fewer
    return live
