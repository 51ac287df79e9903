"""Products with packed matrices on a device: right, and beside cuBLAS on the dense matrix.

Few right-hand sides go by the kernel; many by the dense matrix, made for the call, or, for 2:4 in
16 bits, by torch's semi-structured tensors. All are launched from a graph, on a cold cache.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from spectral_kernels.product import oracle
from spectral_kernels.product.gpu import packing, semi_structured
from spectral_kernels.product.gpu.operator import Runner
from spectral_kernels.product.packed import Packed
from triton.errors import TritonError

from bench.gpu.timing import device_times, graphed, ratio

#: (rows, columns) of layers of 7B models, and zeros; "2:4" is half of every four.
SHAPES = ((4096, 4096), (14336, 4096))
PATTERNS = (0.5, 0.7, 0.9, "2:4")
SIDES = (1, 8, 512)
#: Times as fast as cuBLAS, in bfloat16 with one right-hand side.
TARGETS = {0.5: 1.5, 0.7: 2.2}

Pattern = float | str


def matrix(m: int, n: int, pattern: Pattern, dtype: str, device: str) -> torch.Tensor:
    """Integers from -3 to 3, of which sums of thousands are exact in float32."""
    generator = torch.Generator().manual_seed(m + n)
    weight = torch.randint(-3, 4, (m, n), generator=generator)
    if pattern == "2:4":
        groups = torch.rand(m, n // 4, 4, generator=generator).argsort(2) < 2
        weight *= groups.reshape(m, n)
    else:
        weight *= torch.rand(m, n, generator=generator) >= pattern
    return weight.to(getattr(torch, dtype)).to(device)


def sides(count: int, n: int, dtype: str, device: str) -> torch.Tensor:
    """Right-hand sides of -1, 0 and 1."""
    generator = torch.Generator().manual_seed(count)
    return (
        torch.randint(-1, 2, (count, n), generator=generator).to(getattr(torch, dtype)).to(device)
    )


def packed_of(weight: torch.Tensor) -> Packed:
    """The matrix packed on its device."""
    return Packed(*packing.pack(weight), (weight.shape[0], weight.shape[1]))


def is_right(m: int, n: int, pattern: Pattern, dtype: str, device: str) -> str:
    """Empty where the matrix comes back bit for bit and products are exact, else what is not."""
    weight = matrix(m, n, pattern, dtype, device)
    packed = packed_of(weight)
    values, bits, offsets = oracle.pack(weight.float().cpu().numpy())
    for name, found, expected in (
        ("values", packed.values.float(), values), ("bits", packed.bitmask, bits),
        ("offsets", packed.row_offsets, offsets),
    ):  # fmt: skip
        if not torch.equal(found.cpu(), torch.from_numpy(expected)):
            return f"{name} differ"
    again = packing.unpack(packed.values, packed.bitmask, packed.row_offsets, packed.shape)
    if not torch.equal(again, weight):
        return "the unpacked matrix differs"
    run = Runner(packed)
    for count in (1, 2, 3, 8, 16, 32):
        x = sides(count, n, dtype, device)
        exact = (x.double() @ weight.double().T).to(x.dtype)
        if not torch.equal(run(x), exact):
            return f"the product with {count} right-hand sides differs"
    return ""


def checks(m: int, n: int, device: str) -> Iterator[tuple[str, Callable[[], str]]]:
    """A check for each dtype, and of 2:4 for those of 16 bits, in a shape that units take."""
    for dtype in ("float32", "bfloat16", "float16", "float64"):
        yield f"product {dtype}", partial(is_right, m, n, 0.6, dtype, device)
    rows, columns = (1, 4) if device == "cpu" else (semi_structured.ROWS, semi_structured.COLUMNS)
    m, n = -(-m // rows) * rows, -(-n // columns) * columns
    for dtype in ("bfloat16", "float16"):
        yield f"product 2:4 {dtype}", partial(is_right, m, n, "2:4", dtype, device)


def measure(
    m: int, n: int, pattern: Pattern, count: int, device: str, rounds: int
) -> dict[str, Any]:
    """A row in bfloat16: milliseconds, and times as fast as cuBLAS."""
    weight = matrix(m, n, pattern, "bfloat16", device)
    packed, x = packed_of(weight), sides(count, n, "bfloat16", device)
    run = Runner(packed)
    run(x)  # compiles, and converts 2:4
    calls = {
        "packed": graphed(partial(run, x), device),
        "cublas": graphed(partial(torch.nn.functional.linear, x, weight), device),
    }
    times = device_times(calls, device, rounds)
    held = (packed.values, packed.bitmask, packed.row_offsets)
    units = semi_structured.has_units(weight.device) and semi_structured.fits(packed)
    return {
        "operation": f"product of {count}",
        "shape": [m, n],
        "dtype": "bfloat16",
        "zeros": pattern,
        "by": "kernel" if count <= 16 else "2:4 units" if units else "dense",
        "bytes": sum(one.numel() * one.element_size() for one in held),
        "dense_bytes": weight.numel() * weight.element_size(),
        "ms": {name: 1e3 * statistics.median(spent) for name, spent in times.items()},
        "speedup_cublas": ratio(times, "cublas", "packed"),
    }


def rows(
    shapes: tuple[tuple[int, int], ...], device: str, deadline: float, rounds: int
) -> Iterator[dict[str, Any]]:
    """The rows; one that failed or came after the deadline says so."""
    for m, n in shapes:
        for pattern in PATTERNS:
            for count in SIDES:
                row: dict[str, Any] = {
                    "operation": f"product of {count}", "shape": [m, n], "zeros": pattern,
                }  # fmt: skip
                if time.monotonic() > deadline:
                    yield row | {"said": "left out: out of time"}
                    continue
                try:
                    yield measure(m, n, pattern, count, device, rounds)
                except (RuntimeError, TritonError) as error:  # memory, a compiler, a launch
                    said = str(error).strip().partition("\n")[0]
                    yield row | {"said": f"{type(error).__name__}: {said}"}


def line(row: dict[str, Any]) -> str:
    """A line of the table; for one right-hand side with what it is to reach."""
    m, n = row["shape"]
    start = f"{row['operation']}, {m} x {n} bfloat16, zeros {row['zeros']}: "
    if "said" in row:
        return start + row["said"]
    bound = TARGETS.get(row["zeros"]) if row["operation"] == "product of 1" else None
    target = "" if bound is None else f" (target {bound:g})"
    return (
        f"{start}{row['ms']['packed']:.4f} ms by {row['by']}, {row['speedup_cublas']:.2f} x "
        f"cuBLAS{target}"
    )
