"""Peak memory of norms and leading triplets: the matrix is not copied, but where it must be."""

import sys

import pytest

from tests.support.cases import isolated

MEASURE = """
import ctypes
import sys
import torch
from spectral_kernels.spectra import randomized_svd, spectral_norm

ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: what is freed goes back at once

def status(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

def matrix(m, n):
    A = torch.empty(m, n, dtype=getattr(torch, sys.argv[1]))
    block = torch.randn(50, n).to(A.dtype)
    for rows in A.split(50):
        rows.copy_(block[: len(rows)])
    return A

RUNS = {"svd": lambda A: randomized_svd(A, 16, depth=2), "norm": spectral_norm}
A = matrix(8192, 4096)
for name, run in RUNS.items():
    run(matrix(512, 512))  # the libraries' own buffers
    excess = []
    for _ in range(3):
        with open("/proc/self/clear_refs", "w") as refs:
            refs.write("5")  # the peak starts from here
        before = status("VmRSS")
        out = run(A)
        excess.append((status("VmHWM") - before) / (A.numel() * A.element_size()))
        del out
    print(name, min(excess))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize(("dtype", "share"), [("float32", 0.05), ("bfloat16", 0.2)])
def test_what_is_held_beside_the_matrix(dtype: str, share: float) -> None:
    """A copy of the matrix: |A|, a scaled A, a transposed A, a bfloat16 A in float32.

    The Krylov space of these calls is under 5 % of A in float32, 10 % in bfloat16, of which a panel
    in float32 is 6 % more.
    """
    done = isolated(MEASURE, dtype)
    assert done.returncode == 0, done.stderr
    excess = {name: float(value) for name, value in map(str.split, done.stdout.splitlines())}
    assert set(excess) == {"svd", "norm"}
    for name, value in excess.items():
        assert value <= share, name
