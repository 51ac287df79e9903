"""Every weight of a model or a checkpoint, one at a time, as something that has a spectrum."""

import os
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Lock

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from spectral_engine.checkpoints import Checkpoint, open_checkpoint
from spectral_engine.layers import Skipped, memory_of
from spectral_engine.selection import Selector

#: The dtypes that spectra are taken of.
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Weight:
    """A tensor of two or more dimensions; `load` gives it, detached, when its turn comes.

    shape is its own; `matrix` is that of the matrix it is seen as, (shape[0], the rest).
    shared_with are the other names of the same tensor.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    load: Callable[[], torch.Tensor]
    shared_with: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Number of entries."""
        rows, columns = self.matrix
        return rows * columns

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns of the weight as a matrix."""
        columns = 1
        for length in self.shape[1:]:
            columns *= length
        return self.shape[0], columns


Found = tuple[list[Weight], list[Skipped]]


@contextmanager
def weights_of(source: nn.Module | str | os.PathLike[str], selector: Selector) -> Iterator[Found]:
    """Every weight of a model or a checkpoint, and what has no spectrum, with the reason.

    A weight under several names comes once. A checkpoint is closed when the block ends.
    """
    with ExitStack() as stack:
        if isinstance(source, nn.Module):
            yield _of_model(source, selector)
        elif isinstance(source, str | os.PathLike):
            yield _of_checkpoint(stack.enter_context(open_checkpoint(source)), selector)
        else:
            raise TypeError(
                "model: expected a torch.nn.Module or the path of a checkpoint; "
                f"got {type(source).__module__}.{type(source).__qualname__}"
            )


def _of_model(model: nn.Module, selector: Selector) -> Found:
    """The weights of a model: parameters, and what parametrizations and masks make of them."""
    names: dict[Hashable, list[str]] = {}
    classes: dict[Hashable, tuple[str, ...]] = {}
    loads: dict[Hashable, Callable[[], torch.Tensor]] = {}
    tensors: dict[Hashable, torch.Tensor] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        kinds = tuple(cls.__name__ for cls in type(module).__mro__[:-1])
        for name, tensor, load in _of_module(module):
            key = memory_of(tensor)
            names.setdefault(key, []).append(f"{prefix}.{name}" if prefix else name)
            classes[key] = classes.get(key, ()) + kinds
            loads.setdefault(key, load)
            tensors[key] = tensor
    weights, skipped = [], []
    for key, tensor in tensors.items():
        if not is_lazy(tensor) and tensor.ndim < 2:
            continue
        first, *others = names[key]
        called = [*names[key], *(name.rpartition(".")[0] for name in names[key])]
        if is_lazy(tensor) or tensor.is_meta:
            skipped.append(Skipped(first, "no values yet: run the model once or load its weights"))
            continue
        shape = tuple(tensor.shape)
        reason = _reason(shape, tensor.dtype)
        reason = reason or selector.reason_against(called, classes[key])
        if reason is not None:
            skipped.append(Skipped(first, reason))
            continue
        weights.append(Weight(first, shape, tensor.dtype, tensor.device, loads[key], tuple(others)))
    return weights, skipped


def _of_module(
    module: nn.Module,
) -> Iterator[tuple[str, torch.Tensor, Callable[[], torch.Tensor]]]:
    """Name, tensor and how to get its value, for each parameter that a module holds itself.

    A parametrized weight is the one that the module computes with, not its ingredients; a
    parameter `x_orig` beside a mask `x_mask` (torch.nn.utils.prune) is x, their product.
    """
    if isinstance(module, parametrize.ParametrizationList):
        return
    for name, parameter in module._parameters.items():
        if parameter is None:
            continue
        mask = module._buffers.get(name.removesuffix("_orig") + "_mask")
        if name.endswith("_orig") and mask is not None:
            yield name.removesuffix("_orig"), parameter, partial(_masked, parameter, mask)
        else:
            yield name, parameter, parameter.detach
    if parametrize.is_parametrized(module):
        for name in getattr(module, "parametrizations", {}):
            with torch.no_grad():
                value = getattr(module, name)
            yield name, value, value.detach


def _masked(parameter: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return parameter.detach() * mask


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
        load = partial(read, name)
        weights.append(Weight(name, shape, dtype, torch.device("cpu"), load, tuple(shared[name])))
    return weights, skipped


def reader(checkpoint: Checkpoint) -> Callable[[str], torch.Tensor]:
    """`checkpoint.read` for several threads, which have but one position in a file."""
    lock = Lock()

    def read(name: str) -> torch.Tensor:
        with lock:
            return checkpoint.read(name)

    return read


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
    unmatched = [pattern for pattern in selector.unmatched if pattern.startswith("targets")]
    if unmatched:
        raise ValueError(f"{', '.join(unmatched)}: expected to match a weight; found none")
    if not weights:
        raise ValueError(
            "model: expected a floating-point tensor of two or more dimensions"
            f" with targets={selector.targets}, ignore={selector.ignore}; found none"
        )
