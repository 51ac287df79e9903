"""How many threads share a kernel's rows."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numba

from spectral_kernels._numba import on_one_thread

#: Entries of a matrix that are worth one more thread; waking one costs a small matrix more.
#: SmolLM2-135M at 70 %, 64 tokens by `generate`, two quiet cores, OMP_WAIT_POLICY=PASSIVE, beside
#: dense: 1.32 times as fast with 2^17 here, 1.47 with 2^18, 1.65 with 2^19.
_THREAD_ENTRIES = 1 << 19


def every() -> int:
    """The threads that there are; `numba.set_num_threads` may have left fewer to use."""
    return int(numba.config.NUMBA_NUM_THREADS)


def worth(entries: int) -> int:
    """The threads that a matrix of so many entries is worth, at most those that there are."""
    return max(1, min(entries // _THREAD_ENTRIES, every()))


def tasks_of(threads: int) -> int:
    """Into how many tasks a kernel's rows are cut: a few for each thread, so that an uneven machine
    does not wait for one of them.
    """
    return 1 if threads == 1 else 4 * threads


@contextmanager
def at_most(threads: int) -> Iterator[int]:
    """Let kernels use so many threads and no more; gives how many they are."""
    torch = sys.modules.get("torch")
    torch_threads = 0 if torch is None else torch.get_num_threads()
    allowed = numba.get_num_threads()  # which starts the threads, if none have been
    used = min(allowed, threads)
    if used != allowed:
        numba.set_num_threads(used)
    try:
        yield used
    finally:
        if used != allowed:
            numba.set_num_threads(allowed)
        # Where both use one OpenMP library, Numba's start sets the number for torch as well.
        if torch is not None and torch.get_num_threads() != torch_threads:
            torch.set_num_threads(torch_threads)


@contextmanager
def shared(entries: int) -> Iterator[int]:
    """Let kernels use the threads that a matrix of so many entries is worth; gives the tasks to
    cut it into: 1 where one thread is to do it all.
    """
    threads = worth(entries)
    if threads == 1 or on_one_thread():
        # Leave the threads alone: to ask for them costs microseconds.
        yield 1
        return
    with at_most(threads) as used:
        yield tasks_of(used)
