"""How fast products with packed matrices run on the device at hand, beside the dense product.

Both take turns, and a speed-up is the median over rounds of the ratio within one. Sums of packed
products are float32 (float64 of float64); `torch.nn.functional.linear` multiplies the dense matrix.
"""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from spectral_kernels.product import pack, prepare

from spectral_engine._util.checks import integer, number, one_of
from spectral_engine.profiling.device import now
from spectral_engine.profiling.records import DTYPES

#: A round calls each so often that it takes this many seconds at least, up to `MOST_CALLS`.
ROUND, MOST_CALLS = 2e-3, 100


@dataclass(frozen=True)
class SparseMeasurement:
    """What was measured of one matrix.

    shape: (m, n); dtype: of the matrix and of x; sparsity: fraction of zeros
    sides: right-hand sides, rows of x
    seconds, dense_seconds: medians of a call
    speedup: of the packed product over the dense one
    bytes, dense_bytes: of the matrix in either form
    """

    shape: tuple[int, int]
    dtype: str
    sparsity: float
    sides: int
    seconds: float
    dense_seconds: float
    speedup: float
    bytes: int
    dense_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "shape": list(self.shape)}


def profile_sparse(
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[str],
    sparsities: Sequence[float],
    sides: Sequence[int],
    device: str,
    repeats: int,
) -> list[SparseMeasurement]:
    """Measure every combination.

    Args:
        shapes: (m, n) of the matrices.
        dtypes: float16, bfloat16, float32, float64.
        sparsities: fractions of zeros, which lie at random, in [0, 1).
        sides: numbers of right-hand sides.
        device: "cpu" or "cuda".
        repeats: rounds.

    Returns:
        A measurement for each, the last argument's values next to each other.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.
    """
    repeats = integer("repeats", repeats, least=1)
    for shape in shapes:
        if len(shape) != 2 or min(shape) < 1:
            raise ValueError(f"shape: expected two sizes of at least 1; got {shape}")
    for dtype in dtypes:
        one_of("dtype", dtype, DTYPES)
    for sparsity in sparsities:
        number("sparsity", sparsity, least=0.0, below=1.0)
    for count in sides:
        integer("sides", count, least=1)
    return [
        _measure((shape[0], shape[1]), dtype, sparsity, count, device, repeats)
        for shape in shapes
        for dtype in dtypes
        for sparsity in sparsities
        for count in sides
    ]


def _measure(
    shape: tuple[int, int], dtype: str, sparsity: float, sides: int, device: str, repeats: int
) -> SparseMeasurement:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator)
    weight.masked_fill_(torch.rand(shape, generator=generator) < sparsity, 0.0)
    kind: torch.dtype = getattr(torch, dtype)
    weight = weight.to(device, kind)
    x = torch.randn((sides, shape[1]), generator=generator).to(device, kind)
    packed = pack(weight)
    product = prepare(packed)

    def seconds(dense: bool, calls: int) -> float:
        start = now(device)
        for _ in range(calls):
            torch.nn.functional.linear(x, weight) if dense else product(x)
        return (now(device) - start) / calls

    calls = {}
    for dense in (False, True):
        seconds(dense, 1)  # compiles
        calls[dense] = max(1, min(MOST_CALLS, int(ROUND / max(seconds(dense, 1), 1e-9))))
    times = [(seconds(False, calls[False]), seconds(True, calls[True])) for _ in range(repeats)]
    arrays = (packed.values, packed.bitmask, packed.row_offsets)
    return SparseMeasurement(
        shape=shape,
        dtype=dtype,
        sparsity=sparsity,
        sides=sides,
        seconds=statistics.median(own for own, _ in times),
        dense_seconds=statistics.median(other for _, other in times),
        speedup=statistics.median(other / own for own, other in times),
        bytes=sum(array.nbytes for array in arrays),
        dense_bytes=weight.nbytes,
    )
