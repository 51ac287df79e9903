"""Run by a test, in a process of its own: every launch of the GPU backend, short of the device.

A stand-in for the CUDA driver names a target and nothing else, and launches stop once their
arguments are bound. Prints one line of JSON per launch. Kernels that no whole call of
`triton_device` launches are compiled too, for the arguments that they got first.
"""

import json
from typing import Any

import numpy as np
import torch
from spectral_kernels.backends.gpu import packed
from spectral_kernels.backends.gpu.backend import GPU
from spectral_kernels.backends.protocol import Draw, LawTable, Scoring, Thresholds
from spectral_kernels.reference.laws import Base, Shape
from spectral_kernels.reference.patterns import NM
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction


class StandIn:
    """As much of a Triton driver as compiling asks for."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return device

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


COMPILED = ("triton.nm", "triton.packing")
compiled: set[str] = set()
launch = JITFunction.run


def short_of_the_device(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
    return launch(self, *args, grid=grid, warmup=True, **kwargs)


def bound(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
    """Print what was bound; True ends the launch."""
    kernel = fn.jit_function.__name__
    types = {name: kind for name, kind in compile["signature"].items() if kind != "constexpr"}
    print(json.dumps({"kernel": kernel, "types": types}))
    if kernel in compiled or not fn.module.endswith(COMPILED):
        return True
    compiled.add(kernel)
    return False


def main() -> None:
    driver.set_active(StandIn())
    JITFunction.run = short_of_the_device
    knobs.runtime.jit_cache_hook = bound
    # The second shape and the ones among the numbers are what Triton likes to fold into the code.
    for m, n, draw, dtype in [
        (64, 100, Draw(2**64 - 1, 2**32 - 1, 2**62, 6), torch.bfloat16),
        (1, 1, Draw(1, 1, 1, 4), torch.float32),
    ]:
        A = GPU.matrix(torch.ones(m, n, dtype=dtype))
        out = GPU.matrix(torch.empty(m, n, dtype=dtype))
        low_rank = Scoring(Base.ALIGNED, torch.ones(m, 1), torch.ones(1, n), row=torch.ones(m))
        table = LawTable(np.ones((m, 4), np.float32), Shape.L1, True)
        GPU.sample(A, Scoring(), table, draw, out)
        GPU.sample(A, low_rank, table, draw, out)
        solved = Thresholds(np.ones(m, np.uint32), np.ones(m, np.int64))
        GPU.keep_largest(A, Scoring(), solved, out)
        GPU.histogram(A, Scoring(row=torch.ones(m), column=torch.ones(n)))
        GPU.refine(A, Scoring(), 1)
        GPU.all_finite(A)
        if n % 4 == 0:
            GPU.keep_largest_of(A, Scoring(), NM(2, 4), out)
            aligned = Draw(draw.seed, draw.stream, draw.row, 4)
            GPU.sample_of(A, low_rank, NM(2, 4), Shape.L1, True, aligned, out)
        matrix = A.storage.view(m, n)
        bits = packed.pack_bits(matrix)
        packed.keep_bits(matrix, bits)
        packed.compressed_rows(matrix, m * n)
        factors = torch.ones(m, 5), torch.ones(5, n)
        for X in (None, torch.ones(m, n)):
            packed.masked_product(*factors, bits, X, 1.0)
        GPU.row_l1(A)
        GPU.row_thresholds(A, Scoring(), 1)
        GPU.score_bits(A, Scoring())


if __name__ == "__main__":
    main()
