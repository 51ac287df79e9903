"""Work that one process does and all get the result of."""

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from spectral_engine.distributed.groups import steps

Ready = TypeVar("Ready")


@dataclass
class Made:
    """What a piece of work has come to.

    tensors: sent as they are, bit for bit. plain: anything else, which can be pickled.
    """

    tensors: Sequence[torch.Tensor]
    plain: Any = None


@dataclass(frozen=True)
class _Header:
    """What is sent ahead of the tensors of a process; nothing of one that had no work."""

    error: bytes | None = None
    forms: tuple[tuple[torch.Size, torch.dtype], ...] = ()
    plain: Any = None


def by_owners(
    costs: Sequence[float],
    ready: Callable[[int], Ready],
    work: Callable[[int, Ready], Made],
    group: Any,
    device: torch.device,
) -> Iterator[tuple[int, Made]]:
    """Each piece of work done by one process of a group, its result given to all of them.

    Args:
        costs: of each piece; see `steps`.
        ready: called by all processes with each number: what the work needs, which may be gathered.
        work: called by the owner alone.
        group: of processes, all of which iterate to the end.
        device: where tensors are received; those that are made lie there.

    Returns:
        Number and result, in the same order on every process.

    Raises:
        Exception: whatever the work raises, on every process.
    """
    own, processes = dist.get_rank(group), dist.get_world_size(group)
    for step in steps(costs, processes):
        mine: Ready | None = None
        for process, index in enumerate(step):
            needed = ready(index)
            if process == own:
                mine = needed
            del needed
        made, header = None, _Header()
        if mine is not None:
            made, header = _tried(work, step[own], mine)
            mine = None
        headers: list[Any] = [None] * processes
        dist.all_gather_object(headers, header, group=group)
        for one in headers:
            if one.error is not None:
                raise pickle.loads(one.error)
        for process, index in enumerate(step):
            sent = headers[process]
            tensors = [
                broadcast(made.tensors[i] if made and process == own else None, form, process,
                          group, device)
                for i, form in enumerate(sent.forms)
            ]  # fmt: skip
            yield index, Made(tensors, sent.plain)


def _tried(
    work: Callable[[int, Ready], Made], index: int, needed: Ready
) -> tuple[Made | None, _Header]:
    try:
        made = work(index, needed)
    except Exception as error:
        return None, _Header(error=_pickled(error))
    forms = tuple((tensor.shape, tensor.dtype) for tensor in made.tensors)
    return made, _Header(forms=forms, plain=made.plain)


def _pickled(error: Exception) -> bytes:
    try:
        found = pickle.dumps(error)
        pickle.loads(found)
    except Exception:
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return found


def broadcast(
    tensor: torch.Tensor | None,
    form: tuple[torch.Size, torch.dtype],
    owner: int,
    group: Any,
    device: torch.device,
) -> torch.Tensor:
    """A tensor that one process has, on all of a group, bit for bit.

    Args:
        tensor: on the owner; None elsewhere. form: its shape and dtype. owner: its rank in the
            group. device: where it is received.
    """
    shape, dtype = form
    found = torch.empty(shape, dtype=dtype, device=device) if tensor is None else tensor
    sent = found.contiguous()
    if sent.numel():
        flat = sent.reshape(-1).view(torch.uint8)  # so that no backend asks for the dtype
        dist.broadcast(flat, dist.get_global_rank(group, owner), group=group)
    return sent
