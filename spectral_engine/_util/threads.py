"""Many matrices at once on the CPU: a thread each, and no more threads than there are cores.

A factorization of a few hundred columns leaves most of a second thread idle, and on a machine
that others load too, LAPACK's threads wait for one another: matrices side by side with one thread
each are faster than one after the other with all threads on each, several times so under load.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch

Item = TypeVar("Item")

#: A matrix of fewer rows than `_FEW_ROWS`, or one whose product takes no more multiplications than
#: `_FEW_PRODUCTS`, half a millisecond of one core, is multiplied by one thread. BLAS divides these
#: by rows, or into narrow panels of columns, and what it then adds in which order hangs on how many
#: threads there are. With more, of 1 to 300 rows and 300 to 1,100 columns, every bit was the same
#: on one to four threads.
_FEW_ROWS = 32
_FEW_PRODUCTS = 1 << 23


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


def threads_for_product(rows: int, columns: int) -> AbstractContextManager[None]:
    """Where a (rows, columns) matrix is multiplied by square ones: one thread if that costs little.

    The last bits do not hang on the number of threads then; see `_FEW_ROWS`.
    """
    few = rows < _FEW_ROWS or rows * columns**2 <= _FEW_PRODUCTS
    return one_thread() if few else nullcontext()
