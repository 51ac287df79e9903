"""Processes that torchrun has started: joined, and their work shared."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from spectral_engine.distributed.groups import share_work

#: What torchrun tells each process.
_TOLD = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
#: How long a process waits for others, one of which may factor a matrix or write a folder. One that
#: has died is noticed at once.
_PATIENCE = timedelta(days=1)


def is_launched() -> bool:
    """Whether this process is one of several that torchrun has started."""
    return all(name in os.environ for name in _TOLD) and os.environ["WORLD_SIZE"] != "1"


def is_first_launched() -> bool:
    """Whether it is the first of them."""
    return os.environ["RANK"] == "0"


@contextmanager
def launched() -> Iterator[None]:
    """Inside, the processes that torchrun has started share their work; a single one has it all.

    A process group that is there already is taken; else one over gloo is made, and ended.
    """
    if not is_launched() or not dist.is_available():
        yield
        return
    own = not dist.is_initialized()
    if own:
        dist.init_process_group("gloo", timeout=_PATIENCE)
    try:
        with share_work():
            yield
    finally:
        if own:
            dist.destroy_process_group()
