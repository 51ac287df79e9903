"""Kernels in the children of a fork, where the threads of the parent are gone."""

import os
import sys

import pytest

from tests.support.cases import isolated

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

#: Children would wait for ever, so each call has a time limit; it holds the compiler's work.
FORK = """
import multiprocessing
import warnings
import numpy as np
import torch
import spectral_kernels as sk

warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
torch.manual_seed(0)
A = torch.randn(1024, 1024)

def work(seed):
    found = [
        sk.sparsify(A, sparsity=0.9),
        sk.sparsify(A, sparsity=0.9, law="row-l1", rescale=True, seed=seed),
        sk.sparsify(A, sparsity=0.9, law="l2", group="row", seed=seed),
        sk.sparsify(A, pattern="2:4"),
    ]
    return [sparse.weight.numpy().tobytes() for sparse in found]

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return sk.sparsify(A, sparsity=0.9, law="l1", seed=index).weight

if __name__ == "__main__":
    expected = [work(seed) for seed in range(2)]  # starts the threads
    # One worker: each would compile the kernels for itself.
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.map_async(work, range(2)).get(timeout=400) == expected
    loader = torch.utils.data.DataLoader(
        Data(), batch_size=None, num_workers=1, multiprocessing_context="fork", timeout=400
    )
    for index, found in enumerate(loader):
        assert torch.equal(found, sk.sparsify(A, sparsity=0.9, law="l1", seed=index).weight)
    print("same")
"""


def test_children_of_a_fork_draw_the_same() -> None:
    """A pool's or a DataLoader's worker that waits for threads which the fork did not copy, or is
    killed by OpenMP, once the parent has run kernels."""
    done = isolated(FORK, timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "same\n"


#: The parent has OpenMP's threads, and no kernels; the alarm ends a child that waits for ever.
FORKED_FIRST = """
import os
import signal
import sys
import warnings
import torch

warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
torch.set_num_threads(2)
A = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).view(1024, 1024)
torch.exp(A.repeat(4, 1)).sum()
child = os.fork()
if not child:
    signal.alarm(200)
import spectral_kernels as sk
from spectral_kernels._numba import on_one_thread
found = [sk.sparsify(A, sparsity=0.9).nnz, on_one_thread()]
if child:
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(found, flush=True)
if not child:
    os._exit(0)
sys.exit(status)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a fork's child")
def test_a_child_that_was_forked_before_the_import() -> None:
    """A wait for threads that an OpenMP region of the parent has started, where the kernels are
    first imported in the child."""
    done = isolated(FORKED_FIRST, timeout=300)
    assert done.returncode == 0, done.stderr
    kept = (1 << 20) - round(0.9 * (1 << 20))
    assert done.stdout.splitlines() == [f"[{kept}, True]", f"[{kept}, False]"]
