"""Work that one process does and all get the result of."""

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from spectral_engine.distributed.groups import no_sharing, sharing_group, steps

Ready = TypeVar("Ready")
Result = TypeVar("Result")


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
    ready: Callable[[int, int], Ready],
    work: Callable[[int, Ready], Made],
    group: Any,
    device: torch.device,
    *,
    window: int | None = None,
    writer: int | None = None,
) -> Iterator[tuple[int, Made]]:
    """Each piece of work done by one process of a group, its result given to all of them.

    Args:
        costs: of each piece; see `steps`.
        ready: called by all processes with each number and the rank of the one that does it: what
            the work needs, which may be gathered. Only that process uses the result.
        work: called by the owner alone.
        group: of processes, all of which iterate to the end.
        device: where tensors are received; those that are made lie there.
        window: see `steps`.
        writer: the rank of the only process that gets tensors; None for all.

    Returns:
        Number and result, in the same order on every process.

    Raises:
        Exception: whatever the work raises, or `ready` on the owner, on every process.
    """
    own, processes = dist.get_rank(group), dist.get_world_size(group)
    for step in steps(costs, processes, window):
        mine: list[Ready] = []
        made, header = None, _Header()
        for process, index in enumerate(step):
            try:
                needed = ready(index, process)
            except Exception as error:
                if process != own:
                    raise
                header = _Header(error=_pickled(error))  # the others go on to where they are told
                continue
            if process == own:
                mine.append(needed)
            del needed
        if mine:
            made, header = _tried(work, step[own], mine.pop())
        headers: list[Any] = [None] * processes
        dist.all_gather_object(headers, header, group=group)
        _raise_first(headers)
        for process, index in enumerate(step):
            sent = headers[process]
            tensors = []
            for i, form in enumerate(sent.forms):
                have = made.tensors[i] if made and process == own else None
                if writer is None:
                    tensors.append(_broadcast(have, form, process, group, device))
                else:
                    tensors += _passed(have, form, process, writer, group, device)
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


def _broadcast(
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
    sent = _as_sent(tensor, form, device)
    if sent.numel():
        dist.broadcast(_bytes(sent), dist.get_global_rank(group, owner), group=group)
    return sent


def _passed(
    tensor: torch.Tensor | None,
    form: tuple[torch.Size, torch.dtype],
    owner: int,
    writer: int,
    group: Any,
    device: torch.device,
) -> list[torch.Tensor]:
    """A tensor that one process has, on the writer, bit for bit; nothing on the others."""
    own = dist.get_rank(group)
    if own not in (owner, writer):
        return []
    sent = _as_sent(tensor, form, device)
    if sent.numel() and owner != writer:
        if own == owner:
            dist.send(_bytes(sent), dist.get_global_rank(group, writer), group=group)
        else:
            dist.recv(_bytes(sent), dist.get_global_rank(group, owner), group=group)
    return [sent] if own == writer else []


def _as_sent(
    tensor: torch.Tensor | None, form: tuple[torch.Size, torch.dtype], device: torch.device
) -> torch.Tensor:
    if tensor is None:
        return torch.empty(form[0], dtype=form[1], device=device)
    return tensor.contiguous()


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)  # so that no backend asks for the dtype


def gathered_objects(value: Any, group: Any) -> list[Any]:
    """What each process of a group gives, in the order of their ranks; without a group, its own."""
    if group is None:
        return [value]
    found: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, value, group=group)
    return found


@contextmanager
def errors_of_all(group: Any) -> Iterator[None]:
    """An error of one process is raised by all; without a group, its own.

    Raises:
        Exception: that of the process of the lowest rank, as far as it can be sent.
    """
    if group is None:
        yield
        return
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        own = error
    header = _Header(error=None if own is None else _pickled(own))
    _raise_first(gathered_objects(header, group))


def is_own(number: int, group: Any) -> bool:
    """Whether a piece of work is this process's, of those that are shared out in turn."""
    return group is None or number % dist.get_world_size(group) == dist.get_rank(group)


def tell_all(error: BaseException | None, group: Any) -> None:
    """Have all processes know whether this one has gone wrong, those in `by_owners` too.

    Raises:
        Exception: that of another process.
    """
    plain = error if error is None or isinstance(error, Exception) else _ended(error)
    header = _Header(error=None if plain is None else _pickled(plain))
    _raise_first([one for one in gathered_objects(header, group) if error is None])


def _ended(error: BaseException) -> Exception:
    return RuntimeError(f"another process has ended: {type(error).__name__}")


def _raise_first(headers: Sequence[_Header]) -> None:
    for one in headers:
        if one.error is not None:
            raise pickle.loads(one.error)


def by_first(function: Callable[[], Result]) -> Result:
    """What a function gives, which the first of the processes that share their work calls alone.

    Args:
        function: what it gives can be pickled. Inside it no work is shared.

    Raises:
        Exception: whatever it raises, on every process.
    """
    group = sharing_group()
    if group is None:
        return function()
    told: tuple[Any, _Header] = (None, _Header())
    if dist.get_rank(group) == 0:
        try:
            with no_sharing():
                told = function(), _Header()
        except Exception as error:
            told = None, _Header(error=_pickled(error))
    result, header = gathered_objects(told, group)[0]
    _raise_first([header])
    found: Result = result
    return found
