"""Rows of the speed suite: products with packed matrices (`product`).

    pytest --benchmark -k product                       4096 x 4096, under a minute on two cores
    BENCH_SIZES=576,8192 pytest --benchmark -k product  other sizes

Each takes turns with the dense product, torch's sparse CSR (float32) and a read of the matrix.
"""

import statistics
from typing import Any

import pytest

from bench.speed import product
from bench.speed.sizes import sizes_or
from bench.speed.timing import interleave

#: Larger than most caches in float32, small enough that all rows take less than a minute.
SIZES = (4096,)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The sizes, read when tests are collected."""
    metafunc.parametrize("size", sizes_or(SIZES))


@pytest.mark.parametrize("sides", [1, 8])
@pytest.mark.parametrize("sparsity", product.SPARSITIES)
@pytest.mark.parametrize("dtype", product.DTYPES)
def test_product(benchmark: Any, size: int, dtype: str, sparsity: float, sides: int) -> None:
    """Measure the packed product beside the others; nothing here fails for being slow."""
    weight, x = product.problem(size, sparsity, dtype, sides)
    contenders, bytes_ = product.contenders(weight, x)
    times = interleave(contenders)
    row = product.described(times, bytes_, weight.numel() * weight.element_size())
    benchmark.group = f"product {size} {dtype} {sparsity:g} {sides}"
    benchmark.extra_info.update(
        row,
        operation=f"product of {sides}",
        backend="packed",
        device="cpu",
        shape=[size, size],
        dtype=dtype,
        sparsity=sparsity,
        bytes=bytes_,
        ms=row["packed_ms"],
        seconds=times["packed"],
    )
    benchmark.pedantic(
        contenders["packed"], rounds=max(1, min(5, int(0.2 / statistics.median(times["packed"]))))
    )
