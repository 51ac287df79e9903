"""Every weight of a model or a checkpoint, one at a time, as something that has a spectrum."""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from spectral_engine._util.observe import computed_weight
from spectral_engine.checkpoints import Checkpoint, open_checkpoint
from spectral_engine.distributed.shards import gathered
from spectral_engine.layers.find import Layer, Skipped, find_layers
from spectral_engine.layers.selector import Selector

#: The dtypes that spectra are taken of.
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Weight:
    """A weight as `blocks` matrices of one size; `load` gives them when its turn comes.

    The blocks are those on the diagonal of one matrix, the weight's own: groups of a convolution
    or experts of a mixture that see inputs of their own, and most often a single one. The singular
    values of a block-diagonal matrix are those of its blocks.

    shape: of the parameter, or the part of it, as it is stored
    matrix: rows and columns of a block
    load: detached, (blocks, m, n)
    shared_with: the other names of the same weight
    sharded: the parameter, if each process holds but a part of it; `load` gathers it then
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    load: Callable[[], torch.Tensor]
    matrix: tuple[int, int]
    blocks: int = 1
    shared_with: tuple[str, ...] = ()
    sharded: torch.Tensor | None = None

    @property
    def size(self) -> int:
        """Number of entries."""
        return self.blocks * self.matrix[0] * self.matrix[1]

    @property
    def count(self) -> int:
        """Number of singular values."""
        return self.blocks * min(self.matrix)


Found = tuple[list[Weight], list[Skipped]]


@contextmanager
def weights_of(
    source: nn.Module | str | os.PathLike[str],
    selector: Selector,
    split: Any = None,
    argument: str = "model",
) -> Iterator[Found]:
    """Every weight of a model or a checkpoint, and what has no spectrum, with the reason.

    A weight under several names comes once. A model's weights are seen, and named, as `prune` sees
    them. A checkpoint does not say what its tensors are: each is seen as (shape[0], -1). The
    checkpoint is closed when the block ends.

    Args:
        source: the model, or the path of the checkpoint.
        selector: which weights are wanted.
        split: which weights of a model are several matrices.
        argument: what the caller calls `source`, for messages.

    Raises:
        TypeError, ValueError: `source` is neither, or `split` does not fit it.
        OSError: the checkpoint cannot be read.
    """
    with ExitStack() as stack:
        if isinstance(source, nn.Module):
            yield of_model(source, selector, split)
        elif not isinstance(source, str | os.PathLike):
            raise TypeError(
                f"{argument}: expected a torch.nn.Module or the path of a checkpoint; "
                f"got {type(source).__module__}.{type(source).__qualname__}"
            )
        elif split is not None:
            raise TypeError("split: expected a model to split the weights of; got a checkpoint")
        else:
            _require_path(source, argument)
            yield _of_checkpoint(stack.enter_context(open_checkpoint(source)), selector)


def _require_path(source: str | os.PathLike[str], argument: str) -> None:
    """ValueError for a string that is no path of anything, such as a method's or a model's name."""
    path = os.fspath(source)
    if "\0" in path:
        raise ValueError(f"{argument}: expected a path without null characters; got {path!r}")
    if not os.path.lexists(path) and not os.path.splitext(path)[1] and os.sep not in path:
        raise ValueError(
            f"{argument}: expected a torch.nn.Module or the path of a checkpoint; got {path!r},"
            " which is neither a file nor a folder"
        )


def of_model(model: nn.Module, selector: Selector, split: Any = None) -> Found:
    """The weights of a model: parameters, and what parametrizations and masks make of them."""
    values: dict[tuple[int, str], nn.Parameter] = {}
    layers, skipped = find_layers(
        model, selector, split, every=True, weights=partial(_computed_with, values)
    )
    weights: list[Weight] = []
    for layer in layers:
        reason = _reason_against(layer)
        if reason is not None:
            skipped.append(Skipped(layer.name, reason))
            continue
        weight, shape = layer.parameter, layer.matrix_shape
        weights.append(
            Weight(
                layer.name, layer.shape, weight.dtype, weight.device, partial(_load, layer),
                (shape[-2], shape[-1]), shape[0] if layer.view.batch else 1, layer.shared_with,
                weight if layer.sharded else None,
            )
        )  # fmt: skip
    return weights, skipped


def _computed_with(
    values: dict[tuple[int, str], nn.Parameter], module: nn.Module
) -> Iterator[tuple[str, nn.Parameter | None]]:
    """Local name and weight, for each one that a module holds itself and computes with.

    A parametrized weight comes instead of what it is made of. It is computed once, without a change
    of the model, and kept in `values`. A parameter `x_orig` beside a mask `x_mask`
    (torch.nn.utils.prune) is called x.
    """
    if isinstance(module, parametrize.ParametrizationList):
        return
    for name, parameter in module._parameters.items():
        masked = name.removesuffix("_orig")
        yield name if _mask(module, masked) is None else masked, parameter
    if parametrize.is_parametrized(module):
        for name in getattr(module, "parametrizations", {}):
            if (id(module), name) not in values:
                weight = computed_weight(module, name)
                values[id(module), name] = nn.Parameter(weight, requires_grad=False)
            yield name, values[id(module), name]


def _mask(module: nn.Module, name: str) -> torch.Tensor | None:
    """The mask of a weight that torch.nn.utils.prune has made of `x_orig` and `x_mask`."""
    return module._buffers.get(f"{name}_mask") if f"{name}_orig" in module._parameters else None


def _load(layer: Layer) -> torch.Tensor:
    mask, weight = _mask(layer.module, layer.local_name), gathered(layer.parameter)
    matrices = layer.as_matrices(weight if mask is None else weight * mask)
    return matrices if layer.view.batch else matrices[None]


def _of_checkpoint(checkpoint: Checkpoint, selector: Selector) -> Found:
    """The weights of a checkpoint, read when their turn comes."""
    shared: dict[str, list[str]] = {name: [] for name in checkpoint.names}
    for name in checkpoint.names:
        first = checkpoint.tied_to(name)
        if first is not None:
            shared[first].append(name)
    tied = {name for names in shared.values() for name in names}
    read = reader(checkpoint)
    weights, skipped = [], []
    for name in checkpoint.names:
        shape, dtype = checkpoint.shape(name), checkpoint.dtype(name)
        if len(shape) < 2 or name in tied:
            continue
        names = [name, *shared[name]]
        called = [*names, *(other.removesuffix(".weight") for other in names)]
        reason = _reason(shape, dtype) or selector.reason_against(called)
        if reason is not None or not isinstance(dtype, torch.dtype):
            skipped.append(Skipped(name, str(reason)))
            continue
        matrix = (shape[0], math.prod(shape[1:]))
        load = partial(_read, read, name, matrix)
        device = torch.device("cpu")
        weights.append(
            Weight(name, shape, dtype, device, load, matrix, shared_with=tuple(shared[name]))
        )
    return weights, skipped


def reader(checkpoint: Checkpoint) -> Callable[[str], torch.Tensor]:
    """`checkpoint.read` for several threads, which have but one position in a file."""
    lock = Lock()

    def read(name: str) -> torch.Tensor:
        with lock:
            return checkpoint.read(name)

    return read


def _read(read: Callable[[str], torch.Tensor], name: str, matrix: tuple[int, int]) -> torch.Tensor:
    return read(name).reshape(1, *matrix)


def _reason_against(layer: Layer) -> str | None:
    if is_lazy(layer.parameter) or layer.parameter.is_meta:
        return "no values yet: run the model once or load its weights"
    return _reason(layer.shape, layer.parameter.dtype)


def _reason(shape: tuple[int, ...], dtype: torch.dtype | str) -> str | None:
    """Why a tensor has no spectrum, or None."""
    if dtype not in DTYPES:
        return f"{str(dtype).removeprefix('torch.')} has no spectrum"
    return "empty" if 0 in shape else None


def require_found(weights: list[Weight], selector: Selector) -> None:
    """Refuse targets that match nothing, and a source in which no weight is left.

    What an unmatched `ignore` should have kept out is seen in the result.

    Raises:
        ValueError: names the patterns.
    """
    unmatched = [
        pattern for pattern in selector.unmatched if pattern.startswith(("targets", "split"))
    ]
    if unmatched:
        raise ValueError(f"{', '.join(unmatched)}: expected to match a weight; found none")
    if not weights:
        raise ValueError(
            "model: expected a floating-point tensor of two or more dimensions"
            f" with targets={selector.targets}, ignore={selector.ignore}; found none"
        )
