"""All linear layers of a 7B model: what their kernels take together on a device.

Each distinct shape is timed on one synthetic bfloat16 weight, with a cold cache, and counted as
often as the network has it. magnitude and randomized are the kernels alone, budgets solved before;
principal has its SVDs, in batches of one shape, and the kernel that draws.
"""

import statistics
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from spectral_kernels import sparsify
from spectral_kernels.backends.gpu.backend import GPU
from spectral_kernels.backends.protocol import Draw, Scoring
from spectral_kernels.reference.laws import Base, Shape
from spectral_kernels.reference.stream import UNIT
from spectral_kernels.spectra import randomized_svd

from bench.gpu.timing import Call, device_times, graphed

SPARSITY, RANK, ROUNDS = 0.9, 64, 5
#: Shapes of the linear layers of a 7B LLaMA and how many it has of each: 6.5e9 weights.
LAYERS = (((4096, 4096), 128), ((11008, 4096), 64), ((4096, 11008), 32))
#: Matrices whose SVDs are done as one batch.
BATCH = 8


def kernels(A: torch.Tensor) -> dict[str, tuple[Call, ...]]:
    """The launches of each method on one weight."""
    matrix, out = GPU.matrix(A), GPU.matrix(torch.empty_like(A))
    c, threshold = (sparsify(A, sparsity=SPARSITY, law=law).c for law in ("l1", "threshold"))
    laws = torch.tensor([[c * UNIT, 0.0, 0.0, 1.0]], dtype=torch.float32, device=A.device)
    pattern = torch.tensor([threshold], dtype=torch.float32, device=A.device).view(torch.int32)
    stop = torch.tensor([A.numel()], device=A.device)
    m, n = A.shape
    rank = min(RANK, m, n)
    factors = (torch.randn(size, device=A.device) for size in ((m, rank), (rank, n)))
    plain, low_rank = Scoring(), Scoring(Base.PRINCIPAL, *factors)

    def histogram(scoring: Scoring) -> Call:
        return partial(GPU.launch_histogram, matrix, scoring)

    def sample(scoring: Scoring, rescale: bool) -> Call:
        return partial(GPU.launch_sample, matrix, scoring, laws, Shape.L1, rescale, Draw(), out)

    largest = partial(GPU.launch_keep_largest, matrix, plain, pattern, stop, out)
    return {
        "magnitude": (histogram(plain), largest),
        "randomized": (histogram(plain), sample(plain, True)),
        "principal": (histogram(low_rank), sample(low_rank, False)),
    }  # fmt: skip


def seconds_of(A: torch.Tensor, device: str, rounds: int, group: int) -> dict[str, float]:
    """Seconds of each method on one weight; "svd" is that of one matrix out of a batch."""
    found = {}
    for name, calls in kernels(A).items():
        timed = {str(at): graphed(call, device) for at, call in enumerate(calls)}
        times = device_times(timed, device, rounds)
        found[name] = sum(statistics.median(spent) for spent in times.values())
    stack = A.expand(group, *A.shape).float()
    rank = min(RANK, *A.shape)
    calls = {"svd": partial(randomized_svd, stack, rank)}
    calls["svd"]()
    found["svd"] = statistics.median(device_times(calls, device, 2)["svd"]) / group
    found["principal"] += found["svd"]
    return found


def rows(
    device: str, deadline: float, *, shrink: int = 1, rounds: int = ROUNDS, group: int = BATCH
) -> Iterator[dict[str, Any]]:
    """One row: milliseconds of the whole network by method; nothing after the deadline.

    shrink: divides the sides, for a dry run.
    """
    total: dict[str, float] = {}
    row: dict[str, Any] = {"operation": "7B", "dtype": "bfloat16", "sparsity": SPARSITY}
    try:
        for (m, n), count in LAYERS:
            if time.monotonic() > deadline:
                yield row | {"said": "left out: out of time"}
                return
            A = torch.randn((m // shrink, n // shrink), dtype=torch.bfloat16, device=device)
            for name, seconds in seconds_of(A, device, rounds, group).items():
                total[name] = total.get(name, 0.0) + count * seconds
    except Exception as error:  # memory, a launch, a library that is not there
        yield row | {"said": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}
        return
    yield row | {"ms": {name: 1e3 * seconds for name, seconds in total.items()}}


#: The most milliseconds.
TARGETS = {"magnitude": 30.0, "randomized": 30.0, "principal": 3000.0}


def line(row: dict[str, Any]) -> str:
    """A row as text."""
    name = "all linear layers of a 7B model"
    if "said" in row:
        return f"{name}: {row['said']}"
    return f"{name}: " + ", ".join(f"{method} {ms:.1f} ms" for method, ms in row["ms"].items())
