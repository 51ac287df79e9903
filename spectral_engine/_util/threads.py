"""Many matrices at once on the CPU: a thread each, and no more threads than there are cores.

A factorization of a few hundred columns leaves most of a second thread idle, and on a machine
that others load too, LAPACK's threads wait for one another: matrices side by side with one thread
each are faster than one after the other with all threads on each, several times so under load.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")


def for_each(
    function: Callable[[Item], None],
    items: Iterable[Item],
    cost: Callable[[Item], int],
    max_cost: int,
) -> None:
    """Call function(item) for every item, in no order, from several threads.

    As many run at once as torch has threads and as together cost at most `max_cost`; an item that
    costs more than its share of it runs alone, on all threads. The first error ends the run.
    """
    threads = torch.get_num_threads()
    small: list[Item] = []
    large: list[Item] = []
    for item in items:
        (small if cost(item) * threads <= max_cost else large).append(item)
    for item in large:
        function(item)
    if len(small) < 2 or threads == 1:
        for item in small:
            function(item)
        return
    small.sort(key=cost, reverse=True)
    workers = min(threads, len(small))
    with ThreadPoolExecutor(
        workers, initializer=torch.set_num_threads, initargs=(threads // workers,)
    ) as pool:
        try:
            for done in as_completed([pool.submit(function, item) for item in small]):
                done.result()
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch inside; of small matrices LAPACK's threads only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
