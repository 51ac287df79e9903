"""How the tensors of a checkpoint are seen as matrices: as in their model, or by name and shape.

A file does not say which tensor is a weight, which an embedding, and which axis the inputs lie
along. Where config.json names an architecture that transformers knows, the model is asked; else
names and shapes decide, and the report says so.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from spectral_engine._util.globs import matches
from spectral_engine.checkpoints import Checkpoint
from spectral_engine.checkpoints.config import model_config
from spectral_engine.checkpoints.embeddings import LOOKS_LIKE_ONE, looks_like_embedding
from spectral_engine.checkpoints.quantised import companions_of
from spectral_engine.layers.architecture import model_of_folder
from spectral_engine.layers.find import Layer, Skipped, find_layers
from spectral_engine.layers.views import View

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
#: Names of what has two dimensions and is no matrix, in models that are known to have it.
NO_MATRICES = (
    "*a_log", "*bias", "*relative_attention_bias*", "*norm*.weight", "*.router.weight", "*.sinks",
)  # fmt: skip
#: Families whose linear layers are transformers' Conv1D, stored (in, out), and their names.
CONV1D_FAMILIES = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp")
_CONV1D = ("*c_attn.weight", "*c_proj.weight", "*c_fc.weight", "*q_attn.weight")


@dataclass(frozen=True)
class TensorLayer:
    """A tensor, or a part of it, as a matrix or a stack of them.

    name: as in a report, whose hash is its stream. tensor: its name in the checkpoint.
    called, classes: by which patterns choose it. shared_with: other names of the same memory.
    """

    name: str
    tensor: str
    view: View
    shape: tuple[int, ...]
    called: tuple[str, ...]
    classes: Sequence[str] = ()
    shared_with: tuple[str, ...] = ()

    def entries(self, values: torch.Tensor) -> torch.Tensor:
        """Its part of the tensor; a view of the same memory."""
        return self.view.of(values)

    def matrices(self, values: torch.Tensor) -> torch.Tensor:
        """Its part of the tensor as a matrix (m, n), or a stack (b, m, n)."""
        return self.entries(values).flatten(2 if self.view.batch else 1)


@dataclass
class Tensors:
    """The layers of a checkpoint, what is none of them and why, and how that was found out."""

    layers: list[TensorLayer] = field(default_factory=list)
    left: list[Skipped] = field(default_factory=list)
    note: str = ""


class _Everything:
    """Chooses every weight, embeddings too: what is left alone is decided later."""

    def reason_against(
        self, names: Sequence[str], classes: Sequence[str] = (), opt_in: str = ""
    ) -> str | None:
        """None."""
        return None

    def note_unmatched(self, patterns: Sequence[str]) -> None:
        """Nothing is unmatched here."""


def tensors_of(checkpoint: Checkpoint) -> Tensors:
    """The layers of an open checkpoint; no tensor is read.

    Tensors of fewer than two dimensions are not spoken of.
    """
    config = model_config(checkpoint.path)
    model, said = model_of_folder(checkpoint.path, config)
    found = Tensors()
    found.note = (
        f"judged by names and shapes: {said}" if model is None else f"judged as layers of {said}"
    )
    shared = _by_memory(checkpoint)
    companions = companions_of(checkpoint)
    known = {} if model is None else _layers_by_tensor(model, shared, checkpoint)
    strange = []
    for first, names in shared.items():
        reason = _reason_against(checkpoint, first, companions)
        if reason is not None:
            found.left.append(Skipped(first, reason))
        elif first in known:
            seen = known[first]
            found.layers += [one for one in seen if isinstance(one, TensorLayer)]
            found.left += [one for one in seen if isinstance(one, Skipped)]
        else:
            strange.append(first)
            _judge_by_name(found, first, names, checkpoint.shape(first), config.model_type)
    if model is not None and strange:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        found.note += f"; by names and shapes: {', '.join(strange[:3])}{more}"
    return found


def _by_memory(checkpoint: Checkpoint) -> dict[str, list[str]]:
    """The tensors of two dimensions or more: the first name of each, and all its names."""
    shared: dict[str, list[str]] = {}
    for name in checkpoint.names:
        if len(checkpoint.shape(name)) >= 2:
            shared.setdefault(checkpoint.tied_to(name) or name, []).append(name)
    return shared


def _reason_against(checkpoint: Checkpoint, name: str, companions: dict[str, str]) -> str | None:
    """Why a tensor is left alone whatever kind of layer it is of."""
    dtype = checkpoint.dtype(name)
    if name in companions:
        return companions[name]
    if dtype not in DTYPES:
        return f"{str(dtype).removeprefix('torch.')} is not pruned"
    if math.prod(checkpoint.shape(name)) == 0:
        return "empty"
    return checkpoint.reason_to_keep(name)


# As in its model


def _layers_by_tensor(
    model: nn.Module, shared: dict[str, list[str]], checkpoint: Checkpoint
) -> dict[str, list[TensorLayer | Skipped]]:
    """What the model sees in each tensor of its own name and shape."""
    firsts = {name: first for first, names in shared.items() for name in names}
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    layers, skipped = find_layers(model, _Everything())
    found: dict[str, list[TensorLayer | Skipped]] = {}

    def tensor_of(names: Sequence[str]) -> str | None:
        for name in names:
            own = name.partition("[")[0]
            if own in firsts and shapes.get(own) == checkpoint.shape(own):
                return firsts[own]
        return None

    for layer in layers:
        tensor = tensor_of((layer.name, *layer.shared_with))
        if tensor is not None:
            found.setdefault(tensor, []).append(_as_tensor_layer(layer, tensor))
    for one in skipped:
        tensor = tensor_of((one.name,))
        if tensor is not None and tensor not in found:
            found[tensor] = [Skipped(tensor, one.reason)]
    return found


def _as_tensor_layer(layer: Layer, tensor: str) -> TensorLayer:
    return TensorLayer(
        layer.name, tensor, layer.view, layer.shape, (*layer.called, tensor),
        layer.classes, layer.shared_with,
    )  # fmt: skip


# By name and shape


def _judge_by_name(
    found: Tensors, first: str, names: list[str], shape: tuple[int, ...], family: str | None
) -> None:
    lowered = [name.lower() for name in names]
    called = (*names, *(name.removesuffix(".weight") for name in names))
    embedding = looks_like_embedding(names)
    if not embedding and any(matches(pattern, lowered) for pattern in NO_MATRICES):
        found.left.append(Skipped(first, "by its name no matrix of a layer"))
        return
    view = View(
        first,
        of=_transposed if _is_conv1d(lowered, shape, family) else _whole,
        batch=len(shape) == 3 and any("expert" in name for name in lowered),
        opt_in=LOOKS_LIKE_ONE if embedding else "",
    )
    found.layers.append(TensorLayer(first, first, view, shape, called, (), tuple(names[1:])))


def _is_conv1d(names: Sequence[str], shape: tuple[int, ...], family: str | None) -> bool:
    return (
        family in CONV1D_FAMILIES
        and len(shape) == 2
        and any(matches(pattern, names) for pattern in _CONV1D)
    )


def _whole(values: torch.Tensor) -> torch.Tensor:
    return values


def _transposed(values: torch.Tensor) -> torch.Tensor:
    return values.mT
