"""Which processes work together, and who does what.

Processes of a sharded model always do. Those that each hold a whole one, or read the same file, do
so where they are told to, since nothing else says that all of them make the same calls.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist

from spectral_engine.distributed.shards import is_sharded

_sharing: ContextVar[Any] = ContextVar("processes that share work", default=None)
_made: dict[tuple[int, ...], Any] = {}


def several_processes() -> bool:
    """Whether this process is one of several of `torch.distributed`."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sharing_group() -> Any:
    """The processes that share their work now, see `share_work`; None if each does all of it."""
    return _sharing.get()


@contextmanager
def share_work(group: Any = None) -> Iterator[None]:
    """Have processes that hold the same model, or read the same file, share the work out.

    Inside, every process of the group makes the same calls with the same arguments, and all end
    with the bytes that one process alone would end with, at any number of processes. Layers and
    tensors are shared out by cost; calibration batches in turn, batch i to process i mod N.

    Args:
        group: a process group of `torch.distributed`; None for all processes.

    Returns:
        A context manager; in a single process it changes nothing.

    Raises:
        ValueError: this process is not in the group.

    >>> import torch
    >>> import spectral_engine as se
    >>> model = torch.nn.Linear(8, 4)
    >>> with se.share_work():  # under torchrun, after torch.distributed.init_process_group()
    ...     report = se.prune(model, "magnitude", 0.5)
    >>> report.nnz
    16
    """
    if not several_processes():
        yield
        return
    chosen = dist.group.WORLD if group is None else group
    if dist.get_rank(chosen) < 0:
        raise ValueError("group: expected one that this process is in; got another")
    token = _sharing.set(chosen if dist.get_world_size(chosen) > 1 else None)
    try:
        yield
    finally:
        _sharing.reset(token)


@contextmanager
def no_sharing() -> Iterator[None]:
    """Inside, this process does all of its work by itself."""
    token = _sharing.set(None)
    try:
        yield
    finally:
        _sharing.reset(token)


def group_of(tensors: Iterable[torch.Tensor]) -> Any:
    """The processes that hold the parts of sharded tensors, all of them together; None of none.

    To make a group of them, which happens once, is a call of all its processes.
    """
    meshes = [tensor.device_mesh for tensor in tensors if is_sharded(tensor)]  # type: ignore[attr-defined]
    ranks = tuple(sorted({int(rank) for mesh in meshes for rank in mesh.mesh.flatten().tolist()}))
    if not ranks:
        return None
    if ranks == tuple(range(dist.get_world_size())):
        return dist.group.WORLD
    for mesh in meshes:
        if mesh.ndim == 1 and tuple(sorted(mesh.mesh.tolist())) == ranks:
            return mesh.get_group()
    if ranks not in _made:
        _made[ranks] = dist.new_group(list(ranks), use_local_synchronization=True)
    return _made[ranks]


def steps(costs: Sequence[float], processes: int, window: int | None = None) -> list[list[int]]:
    """Work shared out in steps, in each of which every process does at most one piece.

    Args:
        costs: of each piece. processes: how many there are.
        window: how many pieces, in their own order, are shared out among each other; None for all.

    Returns:
        Numbers of the pieces, those of each step; the i-th of a step is for process i. The
        costliest come first, so that those of a step cost about the same.
    """
    found = []
    size = max(1, len(costs) if window is None else window)
    for start in range(0, len(costs), size):
        some = range(start, min(start + size, len(costs)))
        order = sorted(some, key=lambda index: (-costs[index], index))
        found += [order[first : first + processes] for first in range(0, len(order), processes)]
    return found


def rank_of(group: Any) -> int:
    """This process's place in a group; 0 without one."""
    return 0 if group is None else int(dist.get_rank(group))


def size_of(group: Any) -> int:
    """How many processes a group has; one without a group."""
    return 1 if group is None else int(dist.get_world_size(group))


def is_first() -> bool:
    """Whether this process tells of what is done: the first of those that share their work."""
    return rank_of(sharing_group()) == 0
