"""Which layers are pruned at which piece of a model, and which cannot be, one piece at a time."""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from spectral_engine.calibration.request import Request
from spectral_engine.calibration.stages import sources_of
from spectral_engine.pruning.plan import ModelPlan
from spectral_engine.streaming.pieces import IN_MEMORY, Piece
from spectral_engine.streaming.survey import Survey


class Shares:
    """The layers of each piece.

    Args:
        model: whose weights need not be there.
        pieces: see `pieces_of`.
        plan: what is done to each layer.

    Attributes:
        hidden: why the inputs of a layer cannot be seen, by its name; of the others nothing.

    Raises:
        ValueError: names a layer that belongs to no piece alone.
    """

    def __init__(self, model: nn.Module, pieces: Sequence[Piece], plan: ModelPlan) -> None:
        self._pieces = pieces
        self._requests: dict[int, list[Request]] = {}
        self.hidden: dict[str, str] = {}
        owner = {id(module): i for i, one in enumerate(pieces) for module in one.module.modules()}
        names = {id(module): name for name, module in model.named_modules()}
        for layer in plan.layers:
            recipe = plan.assigned[layer.name].recipe
            sources, reason = sources_of(layer, names)
            if reason is not None:
                self.hidden[layer.name] = reason
            places = {owner.get(id(source.module)) for source in sources} or {
                owner.get(id(layer.module))
            }
            if None in places or len(places) > 1:
                raise ValueError(
                    f"model: {layer.name} belongs to no block alone, and one block is in memory at "
                    f"a time; name it in ignore. {IN_MEMORY}"
                )
            self._requests.setdefault(places.pop() or 0, []).append(
                Request(layer, recipe.refit, recipe.low_rank)
            )

    def requests_of(self, piece: Piece) -> list[Request]:
        """The layers of a piece that are pruned."""
        return self._requests.get(self._pieces.index(piece), [])

    def last(self, survey: Survey) -> int:
        """The last step at which something is calibrated, -1 if there is none.

        Raises:
            ValueError: names a piece that is pruned and called more than once a batch, or a weight
                that a later step uses as well.
        """
        last = -1
        for step, piece in enumerate(survey.steps):
            seen = [one for one in self.requests_of(piece) if one.layer.name not in self.hidden]
            if not seen:
                continue
            last = step
            if survey.steps.count(piece) > 1:
                raise ValueError(
                    f"model: {piece.name} is called {survey.steps.count(piece)} times a batch, and "
                    f"one block is in memory at a time; name {seen[0].layer.name} and others of it "
                    f"in ignore. {IN_MEMORY}"
                )
        for step, piece in enumerate(survey.steps[: last + 1]):
            self._require_final(survey, step, piece, last)
        return last

    def _require_final(self, survey: Survey, step: int, piece: Piece, last: int) -> None:
        """Refuse a weight that a later step uses as well: it would have to see it pruned."""
        held = {id(parameter) for *_, parameter in piece.parameters()}
        for later in range(step + 1, last + 1):
            for request in self.requests_of(piece):
                others = survey.steps[later]
                shared = {id(parameter) for *_, parameter in others.parameters()} & held
                if others is not piece and id(request.layer.parameter) in shared:
                    raise ValueError(
                        f"model: {request.layer.name} is a weight of {others.name} too, and one "
                        f"block is in memory at a time; name it in ignore. {IN_MEMORY}"
                    )


def renewed(request: Request) -> Request:
    """The request for a layer whose piece has been loaded since it was found."""
    layer = request.layer
    parameter = layer.module._parameters[layer.local_name]
    if parameter is None:
        raise ValueError(f"model: {layer.name} is not there")
    return request._replace(layer=replace(layer, parameter=parameter))
