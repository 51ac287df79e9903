"""Products with packed matrices beside the dense product, torch's sparse CSR and reading memory.

    python bench/speed/product.py                    8192 x 8192, one and eight right-hand sides
    python bench/speed/product.py --size 4096 --sides 1 --dtype bfloat16
    python bench/speed/product.py --instructions avx2       as on a processor without AVX-512

All take turns in one process (`timing`); `x dense` and `x CSR` are medians of the ratios within a
round. The floor is what the packed bytes take at the speed at which `torch.sum` reads memory.
"""

import statistics
import warnings
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from spectral_kernels.product import Operator, Packed, pack, prepare
from spectral_kernels.product.cpu import operator as cpu

from bench.speed.timing import Contender, Times, interleave, ratio

SPARSITIES = (0.5, 0.7, 0.9)
DTYPES = ("float32", "bfloat16")


def problem(
    size: int, sparsity: float, dtype: str, sides: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A sparse matrix (size, size) and x (sides, size)."""
    torch.manual_seed(0)
    weight = torch.randn(size, size)
    weight.masked_fill_(torch.rand(size, size) < sparsity, 0.0)
    kind = getattr(torch, dtype)
    return weight.to(kind), torch.randn(sides, size).to(kind)


def packed_bytes(packed: Packed) -> int:
    """Bytes that a product has to read."""
    arrays = (packed.values, packed.bitmask, packed.row_offsets)
    return sum(array.numel() * array.element_size() for array in arrays)


def operator(packed: Packed, instructions: str | None) -> Operator:
    """What multiplies by a matrix, with the instructions asked for; None: the fastest."""
    if instructions is None:
        return prepare(packed)
    run = cpu.Runner(packed, instructions)
    return Operator(packed, run, run.quick)


def contenders(
    weight: torch.Tensor, x: torch.Tensor, instructions: str | None = None
) -> tuple[dict[str, Contender], int]:
    """packed, dense, csr (float32 only) and read; and the bytes of the packed matrix."""
    packed = pack(weight)
    product = operator(packed, instructions)
    found: dict[str, Contender] = {
        "packed": lambda: product(x),
        "dense": lambda: torch.nn.functional.linear(x, weight),
        "read": lambda: weight.view(torch.float32).sum(),
    }
    if weight.dtype == torch.float32:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR")
            csr, columns = weight.to_sparse_csr(), x.T.contiguous()
        found["csr"] = lambda: csr @ columns
    return found, packed_bytes(packed)


def described(times: Times, bytes_: int, dense_bytes: int) -> dict[str, float]:
    """What a row says; times in ms."""
    middle = {name: 1e3 * statistics.median(spent) for name, spent in times.items()}
    row = {f"{name}_ms": spent for name, spent in middle.items()}
    row["floor_ms"] = middle["read"] * bytes_ / dense_bytes
    row["speedup_dense"] = ratio(times, "dense", "packed")
    if "csr" in times:
        row["speedup_csr"] = ratio(times, "csr", "packed")
    return row


def main(
    size: Annotated[int, typer.Option(min=64, help="rows and columns")] = 8192,
    sides: Annotated[list[int] | None, typer.Option(min=1, help="right-hand sides")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="float32, bfloat16")] = None,
    sparsity: Annotated[list[float] | None, typer.Option(min=0, max=1, help="zeros")] = None,
    instructions: Annotated[str | None, typer.Option(help="plain, avx2 or avx512")] = None,
) -> None:
    """Print a line for each dtype, sparsity and number of right-hand sides."""
    for kind in dtype or DTYPES:
        if instructions is not None and instructions not in cpu.ways(kind):
            raise typer.BadParameter(
                f"expected one of {', '.join(cpu.ways(kind))} for {kind} on this processor; "
                f"got {instructions}"
            )
    names = ("packed_ms", "floor_ms", "dense_ms", "csr_ms", "speedup_dense", "speedup_csr")
    table = Table("dtype", "zeros", "sides", *names)
    for kind in dtype or DTYPES:
        for zeros in sparsity or SPARSITIES:
            for count in sides or (1, 8):
                weight, x = problem(size, zeros, kind, count)
                found, bytes_ = contenders(weight, x, instructions)
                row = described(interleave(found), bytes_, weight.numel() * weight.element_size())
                cells = [f"{row[name]:.2f}" if name in row else "" for name in names]
                table.add_row(kind, f"{zeros:.0%}", str(count), *cells)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
