"""How a weight lies in memory: whether it can be changed in place, what else is the same memory.

A weight is read, pruned and masked entry by entry, in place. That needs strided memory of its own,
or for a sharded weight of each process's part; quantised and sparse tensors have none, and are
refused here with their kind and a way out.
"""

from collections.abc import Hashable, Iterable, Sequence

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from spectral_engine.distributed.shards import here, is_sharded, obstacle_to_gathering

_IGNORE = "or name it in ignore"


def obstacle(weight: torch.Tensor) -> str | None:
    """Why a weight has no plain memory, as the end of a sentence about it; None if it has.

    Args:
        weight: a parameter, initialised or not.

    Returns:
        Its kind, and what can be done: "is a DTensor, ...".
    """
    if hasattr(weight, "ds_id"):
        return (
            "is partitioned by DeepSpeed ZeRO-3, which is not supported; prune the model before "
            f"deepspeed.initialize, or as it is saved by zero_to_fp32, {_IGNORE}"
        )
    kind = type(weight)
    if is_sharded(weight):
        found = obstacle_to_gathering(weight)
        way_out = f"prune the model with its full weights, {_IGNORE}"
        return None if found is None else f"{found}; {way_out}"
    if kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return (
            f"is of the class {kind.__name__}, without plain memory, as quantisation makes it; "
            f"prune it before, or put a plain tensor in its place (weight.dequantize()), {_IGNORE}"
        )
    if not is_lazy(weight) and weight.layout != torch.strided:
        return f"has the layout {weight.layout}; put weight.to_dense() in its place, {_IGNORE}"
    return None


def without_values(module: nn.Module) -> str:
    """Why a weight of a module on the meta device has no values, as the end of a sentence about it.

    A module that accelerate keeps on the host or the disk has a hook of its own that says so.
    """
    hook = getattr(module, "_hf_hook", None)
    hooks = getattr(hook, "hooks", (hook,))
    if any(getattr(one, "offload", False) is True for one in hooks):
        return (
            "is offloaded by accelerate and loaded for each forward pass alone; prune the folder "
            "on disk by prune_file(IN, OUT), which holds one tensor or one block at a time, or "
            "load the model without offloading"
        )
    return "is on the meta device; load its weights first"


def memory_of(weight: torch.Tensor) -> Hashable:
    """Equal for two tensors that are the same entries of the same memory, in whatever order.

    A weight and its transpose, or the same weight as (out, in) and as (out, in, 1, 1), are equal;
    a weight and a slice of it are not. What has no memory of its own is equal to itself only; so
    is a sharded weight, of which some processes may have no memory.
    """
    if is_lazy(weight) or weight.is_meta or obstacle(weight) or is_sharded(weight):
        return id(weight)
    if weight.data_ptr() == 0:
        return id(weight)
    return (weight.device, weight.data_ptr(), weight.dtype, axes(weight.shape, weight.stride()))


def axes(shape: Sequence[int], stride: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """(size, stride) of a tensor's axes, the longest stride first, neighbours that run on as one.

    Two tensors that start at the same place hold the same entries where these are equal.
    """
    found: list[tuple[int, int]] = []
    for size, step in sorted(zip(shape, stride, strict=True), key=lambda axis: (-axis[1], axis[0])):
        if size == 1:
            continue
        if found and found[-1][1] == size * step:
            found[-1] = (found[-1][0] * size, step)
        else:
            found.append((size, step))
    return tuple(found)


def entries_as(kept: torch.Tensor, weight: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """What is known of each entry of one weight, for another one of the same memory.

    Args:
        kept: boolean, shaped as `weight`.
        weight, other: of equal `memory_of`.

    Returns:
        Boolean, shaped as `other`: at each entry, what `kept` has for the same place in memory.
    """
    if weight is other or (weight.shape == other.shape and weight.stride() == other.stride()):
        return kept
    flat = torch.empty(_span(weight), dtype=torch.bool, device=kept.device)
    flat.as_strided(weight.shape, weight.stride()).copy_(kept)
    return flat.as_strided(other.shape, other.stride()).clone()


def require_writable(weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Refuse weights that cannot be changed in place, each entry once.

    Args:
        weights: names and tensors with plain memory.

    Raises:
        ValueError: one made under `torch.inference_mode`; one of whose entries several are the same
            memory, as `expand` makes them; or two that overlap without being equal.
    """
    known: dict[Hashable, tuple[str, torch.Tensor]] = {}
    for name, parameter in weights:
        weight = here(parameter)
        if weight.is_inference():
            raise ValueError(
                f"model: {name} is an inference tensor, which cannot be changed in place; make or "
                f"load the model outside of torch.inference_mode(), {_IGNORE}"
            )
        if _overlaps_itself(weight):
            raise ValueError(
                f"model: several entries of {name} are the same memory, as expand makes them, and "
                f"cannot be changed one by one; put weight.contiguous() in its place, {_IGNORE}"
            )
        known.setdefault(memory_of(parameter), (name, weight))
    _refuse_overlaps(known.values())


def _refuse_overlaps(weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Refuse two different tensors that have an entry in common: it would be pruned twice."""
    placed = [
        ((str(weight.device), weight.data_ptr()), name, weight)
        for name, weight in weights
        if weight.numel() and not weight.is_meta
    ]
    placed.sort(key=lambda one: one[0])
    for i, (start, name, weight) in enumerate(placed):
        end = start[1] + _span(weight) * weight.itemsize
        for other_start, other_name, other in placed[i + 1 :]:
            if other_start[0] != start[0] or other_start[1] >= end:
                break
            if _have_common(weight, other):
                raise ValueError(
                    f"model: {name} and {other_name} overlap in memory, so that entries would be "
                    "pruned twice; name one of them in ignore"
                )


def _have_common(weight: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors, of which the second starts later, share memory; byte for byte."""
    offset = other.data_ptr() - weight.data_ptr()
    used = torch.zeros(
        max(_span(weight) * weight.itemsize, offset + _span(other) * other.itemsize),
        dtype=torch.bool,
    )
    _bytes(used, weight, 0).fill_(True)
    return bool(_bytes(used, other, offset).any())


def _bytes(used: torch.Tensor, weight: torch.Tensor, offset: int) -> torch.Tensor:
    size = weight.itemsize
    strides = [stride * size for stride in weight.stride()]
    return used.as_strided((*weight.shape, size), (*strides, 1), offset)


def _overlaps_itself(weight: torch.Tensor) -> bool:
    """Whether several entries are the same memory; counted where the strides leave it open."""
    reach = 0
    for size, stride in reversed(axes(weight.shape, weight.stride())):
        if stride <= reach:
            used = torch.zeros(_span(weight), dtype=torch.bool)
            used.as_strided(weight.shape, weight.stride()).fill_(True)
            return int(used.sum()) < weight.numel()
        reach += (size - 1) * stride
    return False


def _span(weight: torch.Tensor) -> int:
    """From the first to behind the last entry, in entries of memory."""
    if not weight.numel():
        return 0
    return 1 + sum((n - 1) * step for n, step in zip(weight.shape, weight.stride(), strict=True))
