"""Rows of the speed suite: products with packed matrices (`product`), 4096 x 4096."""

import statistics
from typing import Any

import pytest

from bench.speed import product
from bench.speed.timing import interleave

SIZE = 4096


@pytest.mark.parametrize("sides", [1, 8])
@pytest.mark.parametrize("sparsity", product.SPARSITIES)
@pytest.mark.parametrize("dtype", product.DTYPES)
def test_product(benchmark: Any, dtype: str, sparsity: float, sides: int) -> None:
    """Measure the packed product beside the others; nothing here fails for being slow."""
    weight, x = product.problem(SIZE, sparsity, dtype, sides)
    contenders, bytes_ = product.contenders(weight, x)
    times = interleave(contenders)
    row = product.described(times, bytes_, weight.numel() * weight.element_size())
    benchmark.group = f"product {dtype} {sparsity:g} {sides}"
    benchmark.extra_info.update(
        row,
        operation=f"product of {sides}",
        backend="packed",
        device="cpu",
        shape=[SIZE, SIZE],
        dtype=dtype,
        sparsity=sparsity,
        bytes=bytes_,
        ms=row["packed_ms"],
        seconds=times["packed"],
    )
    benchmark.pedantic(
        contenders["packed"], rounds=max(1, min(5, int(0.2 / statistics.median(times["packed"]))))
    )
