"""Batches of a model's inputs: what is taken for one, how often they are read, how one is given.

A list or tuple of batches is read once for each pass over the model. Anything else, a DataLoader
for one, is read once, and its batches are held in memory until the calibration is over: a loader
that shuffles, or that runs out, gives every pass the same batches.

The model is given a copy of each batch, so that a forward that works in place changes the copy.
"""

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from spectral_engine._util.progress import on_the_way

#: Runs a model over one batch.
Forward = Callable[[nn.Module, Any], Any]

_TOKENIZE = 'tokenizer(texts, padding=True, return_tensors="pt") makes a batch of strings'
#: Arguments by which a model is told that it has labels.
_LABELS = ("labels", "label")


class RefusedError(ValueError):
    """A message that names the argument already."""


# What is taken for batches


def check_batches(batches: Any, own_forward: bool) -> None:
    """Refuse what holds no batches, or can be read only once without saying so.

    Args:
        batches: as the user gave them.
        own_forward: whether a function of the user's gives them to the model; then a batch may be
            anything.

    Raises:
        TypeError: names what came, and the way out.
    """
    kind = type(batches).__name__
    if isinstance(batches, str | bytes):
        raise TypeError(f"calibration: expected batches of tensors; got {kind}; {_TOKENIZE}")
    if isinstance(batches, np.ndarray):
        raise TypeError(
            "calibration: expected batches of tensors; got a NumPy array, of which "
            "torch.from_numpy makes a tensor"
        )
    if isinstance(batches, Iterator):
        raise TypeError(
            "calibration: expected batches that can be gone through several times, such as a list "
            f"or a DataLoader; got {kind}, which list() would make one"
        )
    there = isinstance(batches, Iterable) or hasattr(batches, "__getitem__")
    if not there or isinstance(batches, np.generic):  # a scalar of NumPy has __getitem__
        raise TypeError(f"calibration: expected batches; got {kind}")
    if not own_forward and _is_of_datasets(batches):
        raise TypeError(
            f"calibration: expected batches of tensors; got a datasets.{kind}, which gives single "
            'rows; torch.utils.data.DataLoader(data.with_format("torch"), batch_size=8) makes '
            "batches of it, if its columns are what the model takes"
        )


def _is_of_datasets(batches: Any) -> bool:
    return any(cls.__module__.partition(".")[0] == "datasets" for cls in type(batches).__mro__)


def held(batches: Any) -> Sequence[Any]:
    """The batches, so that they can be read several times; see the head of this module.

    Raises:
        ValueError: there is none.
    """
    found: Sequence[Any] = batches if isinstance(batches, list | tuple) else list(batches)
    if not found:
        raise ValueError(
            "calibration: expected at least one batch; got none"
            + ("" if isinstance(batches, list | tuple) else f" from {type(batches).__name__}, "
               "which may have run out in an earlier pass")
        )  # fmt: skip
    return found


def copies(
    batches: Iterable[Any], device: torch.device | None, own_forward: bool, first: int = 0
) -> Iterator[tuple[int, Any]]:
    """A copy of each batch on a device, with its number, from `first` on.

    -inf is let pass, since additive masks hold it; layers that see it are refused later.

    Raises:
        TypeError: a batch without tensors, unless a function of the user's takes it.
        ValueError: one holds NaN or +inf.
    """
    for index, batch in enumerate(batches, first):
        if not own_forward:
            _require_tensors(batch, index)
        for tensor in tensors_of(batch):
            _require_plain(tensor, index)
            if tensor.is_floating_point() and not _finite(tensor):
                raise ValueError(f"calibration: batch {index} holds NaN or infinity")
        yield index, copied(batch, device)
        on_the_way(f"batch {index + 1}")


def _require_plain(tensor: torch.Tensor, index: int) -> None:
    """Refuse a tensor that cannot be looked at: without values, sparse, nested, or of few bits."""
    kind = ""
    if tensor.is_meta:
        kind = "one on the meta device"
    elif tensor.is_nested:
        kind = "a nested one"
    elif tensor.layout != torch.strided:
        kind = f"one of layout {tensor.layout}"
    elif tensor.is_floating_point() and tensor.itemsize == 1:
        kind = f"one of {tensor.dtype}"
    if kind:
        raise TypeError(f"calibration: expected dense tensors in batch {index}; got {kind}")


def _finite(tensor: torch.Tensor) -> bool:
    return not bool((tensor.isnan() | tensor.isposinf()).any())


def _require_tensors(batch: Any, index: int) -> None:
    """Refuse a batch of nothing but strings, numbers, arrays and None."""
    leaves = list(_leaves(batch))
    if not all(isinstance(leaf, _NO_TENSORS) for leaf in leaves):
        return
    way_out = ""
    if any(isinstance(leaf, str | bytes) for leaf in leaves):
        way_out = f"; {_TOKENIZE}"
    elif any(isinstance(leaf, np.ndarray) for leaf in leaves):
        way_out = "; torch.from_numpy makes a tensor of an array"
    elif any(isinstance(leaf, int | float) for leaf in leaves):
        way_out = '; a tokenizer makes tensors with return_tensors="pt", torch.tensor of lists'
    what = "an empty " * (not leaves) + type(batch).__name__
    raise TypeError(f"calibration: expected tensors in batch {index}; got {what}{way_out}")


_NO_TENSORS = (str, bytes, int, float, complex, np.ndarray, np.generic, type(None))


def _leaves(batch: Any) -> Iterator[Any]:
    if isinstance(batch, Mapping):
        for value in batch.values():
            yield from _leaves(value)
    elif isinstance(batch, tuple | list):
        for value in batch:
            yield from _leaves(value)
    else:
        yield batch


def tensors_of(batch: Any) -> Iterator[torch.Tensor]:
    """The tensors of a batch, at any depth of tuples, lists and dictionaries."""
    return (leaf for leaf in _leaves(batch) if isinstance(leaf, torch.Tensor))


def copied(batch: Any, device: torch.device | None, memo: dict[int, Any] | None = None) -> Any:
    """A copy of a batch, its tensors on a device; a tensor that comes twice does so in the copy.

    What has no copy stays as it is.
    """
    memo = {} if memo is None else memo
    if id(batch) not in memo:
        memo[id(batch)] = _copied(batch, device, memo)
    return memo[id(batch)]


def _copied(batch: Any, device: torch.device | None, memo: dict[int, Any]) -> Any:
    if isinstance(batch, PackedSequence):  # a tuple, but its lengths stay on the CPU
        moved = batch if device is None else batch.to(device)  # type: ignore[arg-type]
        return PackedSequence(moved.data.clone(), *moved[1:])
    if isinstance(batch, torch.Tensor):
        return batch.detach().to(batch.device if device is None else device, copy=True)
    if isinstance(batch, Mapping):
        return {key: copied(value, device, memo) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(copied(value, device, memo) for value in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(copied(value, device, memo) for value in batch)
    try:
        return copy.deepcopy(batch)
    except Exception:  # a lock, a file: whatever the copy of it raises
        return batch


# How a batch is given to a model


def call(model: nn.Module, batch: Any) -> Any:
    """The model of a batch: a dictionary by keywords, of a tuple or list see `arguments_of`."""
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, tuple | list) and not isinstance(batch, PackedSequence):
        return model(*arguments_of(model, batch))
    return model(batch)


def named_arguments(model: nn.Module, batch: Any) -> Mapping[str, Any]:
    """The arguments of a model by name, as far as a batch tells them."""
    if isinstance(batch, Mapping):
        return batch
    if isinstance(batch, tuple | list) and not isinstance(batch, PackedSequence):
        names = (parameter.name for parameter in _places(model) or ())
        return dict(zip(names, arguments_of(model, batch), strict=False))
    return {}


def arguments_of(model: nn.Module, items: Sequence[Any]) -> list[Any]:
    """The leading items of a tuple that a model's forward takes by position; not its labels.

    From the first item on that does not fit its place, they are left out: labels for which there
    is no place; a tensor where the forward has a number, a string or a truth value; integers for
    an attention mask that are none, since they are not 0 and 1, not shaped as the inputs, or hide
    positions that hold different tokens.

    Raises:
        ValueError: of a model that takes labels by name, an item may be them or something else.
    """
    places = _places(model)
    if places is None:
        return list(items)
    takes_labels = any(name in _LABELS for name in _signature(model))
    given: list[Any] = []
    for item, place in zip(items, places, strict=False):
        optional = place.default is not inspect.Parameter.empty
        if given and optional and isinstance(item, torch.Tensor):
            if isinstance(place.default, bool | int | float | str):
                break
            if "mask" in place.name:
                if not _may_be_mask(item, given[0]):
                    break
            elif takes_labels and place.name not in _LABELS:
                first = given[0]
                if isinstance(first, torch.Tensor) and item.shape == first.shape:
                    raise RefusedError(
                        f"calibration: item {len(given)} of a batch may be {place.name!r} or "
                        f"labels of {type(model).__name__}; give a dictionary of its arguments"
                    )
                break
        given.append(item)
    return given


def _may_be_mask(mask: torch.Tensor, inputs: Any) -> bool:
    """Whether a tensor can say which of a model's inputs count; labels seldom can."""
    if mask.dtype == torch.bool or mask.is_floating_point():
        return True
    fits = isinstance(inputs, torch.Tensor) and mask.shape == inputs.shape[: mask.ndim]
    if mask.ndim < 2 or not fits or not bool(((mask == 0) | (mask == 1)).all()):
        return False
    if mask.shape == inputs.shape and not inputs.is_floating_point():
        return len(inputs[mask == 0].unique()) <= 1  # all of them padding
    changes = (mask[..., 1:] != mask[..., :-1]).sum(-1)
    return bool((changes <= 1).all())


def _signature(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    """The parameters of a model's forward, of the model inside if it is wrapped."""
    found = inspect.signature(model.forward).parameters
    if any(one.kind is inspect.Parameter.VAR_POSITIONAL for one in found.values()):
        for name in ("_orig_mod", "module"):
            inside = getattr(model, name, None)
            if isinstance(inside, nn.Module):
                return _signature(inside)
    return found


def _places(model: nn.Module) -> list[inspect.Parameter] | None:
    """What a model's forward takes by position, None for any number."""
    found = _signature(model).values()
    if any(one.kind is inspect.Parameter.VAR_POSITIONAL for one in found):
        return None
    by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [one for one in found if one.kind in by_place]


# Errors of the model


def named_error(error: Exception, index: int, batch: Any) -> Exception:
    """What a model raised over a batch, as an error that names the argument."""
    if isinstance(error, RefusedError | MemoryError | torch.OutOfMemoryError):
        return error
    shapes = [tuple(tensor.shape) for tensor in tensors_of(batch)][:4]
    way_out = ""
    if any(_is_one_row(tensor) for tensor in tensors_of(batch)):
        way_out = "; token ids of one dimension need another for the batch, ids[None]"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = f"the model does not take batch {index}, of shapes {shapes}"
    kind = TypeError if isinstance(error, TypeError) else ValueError
    return kind(f"calibration: {text}: {lines[0]}{way_out}")


def _is_one_row(tensor: torch.Tensor) -> bool:
    return tensor.ndim == 1 and not (tensor.is_floating_point() or tensor.is_complex())
