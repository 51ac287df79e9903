"""The pieces of a model that are in memory one at a time: its blocks, and large parts beside them.

A block is an element of a list of repeated blocks: of the outermost `ModuleList` or `Sequential` in
which a class comes twice. Outside of blocks, a module that holds a matrix itself is a piece:
embeddings, projections, the output head. All else, norms and rotary embeddings, is small and stays
loaded.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from spectral_engine.calibration.batches import tensors_of
from spectral_engine.layers.names import parameter_name

IN_MEMORY = "Load the model and prune it in memory: se.prune(model, recipe, calibration=batches)"


@dataclass(frozen=True, eq=False)
class Piece:
    """A module that is loaded as a whole, and what it is called in the model.

    block: whether it is one of repeated blocks.
    """

    name: str
    module: nn.Module
    block: bool

    def parameters(self) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
        """Every parameter by its full name, the module that holds it, and its name there."""
        for prefix, module in self.module.named_modules(prefix=self.name):
            for local, parameter in module._parameters.items():
                if parameter is not None:
                    yield parameter_name(prefix, local), module, local, parameter

    @property
    def bytes(self) -> int:
        """What its parameters take."""
        own = {id(one): one for *_, one in self.parameters()}
        return sum(one.numel() * one.element_size() for one in own.values())

    @property
    def width(self) -> int:
        """Entries of what it gives for a position: of a block, those of its narrowest norm."""
        vectors = [one.shape[0] for *_, one in self.parameters() if one.ndim == 1]
        matrices = [one.shape[-1] for *_, one in self.parameters() if one.ndim > 1]
        return min(vectors or matrices or [0]) if self.block else max(matrices or [0])

    def working_bytes(self, positions: int) -> int:
        """What its matrices give for so many positions, all of it held at once, and twice that it
        is given.
        """
        itemsize = max((one.element_size() for *_, one in self.parameters()), default=4)
        rows = sum(one.shape[0] for *_, one in self.parameters() if one.ndim == 2)
        return positions * itemsize * (2 * self.width + (rows if self.block else 0))


def pieces_of(model: nn.Module) -> list[Piece]:
    """The pieces of a model, in the order of its modules, none inside another.

    Args:
        model: nothing of it is read or changed.

    Raises:
        ValueError: no repeated blocks are found; names the class of the model.

    Example:
        >>> blocks = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
        >>> model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(9, 4), "blocks": blocks})
        >>> [(piece.name, piece.block) for piece in pieces_of(model)]
        [('embed', False), ('blocks.0', True), ('blocks.1', True)]
    """
    found = list(_pieces(model, ""))
    if not any(piece.block for piece in found):
        raise ValueError(
            f"{type(model).__name__}: expected a list of repeated blocks, of which one is in "
            "memory at a time; found none. Load the model and prune it in memory: "
            "se.prune(model, recipe, calibration=batches)"
        )
    return found


def resident_parameters(
    model: nn.Module, pieces: Sequence[Piece]
) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """The parameters of no piece, as `Piece.parameters` gives them."""
    inside = {id(module) for piece in pieces for module in piece.module.modules()}
    for prefix, module in model.named_modules():
        for local, parameter in module._parameters.items():
            if parameter is not None and id(module) not in inside:
                yield parameter_name(prefix, local), module, local, parameter


@contextmanager
def loaded(piece: Piece, values: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """The piece with these values, by the full names of its parameters; without them afterwards."""
    without = [(module, local, parameter) for _, module, local, parameter in piece.parameters()]
    made: dict[int, nn.Parameter] = {}
    try:
        for name, module, local, parameter in list(piece.parameters()):
            value = made.get(id(parameter))
            if value is None:
                value = nn.Parameter(values[name], requires_grad=parameter.requires_grad)
                made[id(parameter)] = value
            module._parameters[local] = value
        del values
        yield
    finally:
        for module, local, parameter in without:
            module._parameters[local] = parameter


def positions_in(batch: object) -> int:
    """How many positions, or rows, the first tensor of a batch has."""
    tensor = next(tensors_of(batch), None)
    if tensor is None:
        return 1
    whole = tensor.ndim <= 2 and not tensor.is_floating_point()
    return max(1, tensor.numel() if whole else math.prod(tensor.shape[:-1]))


def _pieces(module: nn.Module, name: str) -> Iterator[Piece]:
    if _is_list_of_blocks(module):
        for local, child in module.named_children():
            if _has_parameters(child):
                yield Piece(f"{name}.{local}" if name else local, child, True)
        return
    if _holds_matrix(module) and not any(map(_is_list_of_blocks, module.modules())):
        yield Piece(name, module, False)
        return
    for local, child in module.named_children():
        yield from _pieces(child, f"{name}.{local}" if name else local)


def _is_list_of_blocks(module: nn.Module) -> bool:
    if not isinstance(module, nn.ModuleList | nn.Sequential):
        return False
    classes = Counter(type(child) for child in module.children() if _has_parameters(child))
    return any(count > 1 for count in classes.values())


def _has_parameters(module: nn.Module) -> bool:
    return any(parameter.ndim > 1 for parameter in module.parameters())


def _holds_matrix(module: nn.Module) -> bool:
    return any(one is not None and one.ndim > 1 for one in module._parameters.values())
