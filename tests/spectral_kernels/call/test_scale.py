"""More entries than 2^24, where float32 counts stop, and than 2^31, where 32-bit offsets do."""

from typing import Any

import numpy as np
import pytest
import torch
from spectral_kernels import sparsify
from spectral_kernels.backends.cpu.backend import CPU
from spectral_kernels.backends.protocol import Scoring
from spectral_kernels.reference import budget as bg
from spectral_kernels.reference import oracle, stream
from spectral_kernels.reference.laws import Shape

from tests.support.cases import bits, integer_factors

SIDE = 4097
SIZE = SIDE * SIDE


@pytest.fixture(scope="module")
def normal() -> Any:
    rng = np.random.default_rng(0)
    return rng.standard_normal((SIDE, SIDE), np.float32)


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.99])
def test_exact_count(normal: Any, sparsity: float) -> None:
    """`torch.quantile` and float32 ranks, which go astray at 2^24 entries."""
    budget = SIZE - round(sparsity * SIZE)
    out = sparsify(normal, sparsity=sparsity)
    assert out.nnz == budget == np.count_nonzero(out.weight)
    kept = out.weight != 0
    threshold = np.partition(np.abs(normal), SIZE - budget, axis=None)[SIZE - budget]
    assert np.abs(normal[kept]).min() == threshold == np.float32(out.c)
    np.testing.assert_array_equal(out.weight[kept], normal[kept])


@pytest.mark.parametrize("sparsity", [0.25, 0.9])
def test_exact_count_with_ties(sparsity: float) -> None:
    """Ties counted in float32: every entry ties with 2^24 others here."""
    A = torch.full((SIDE, SIDE), -0.75, dtype=torch.bfloat16)
    budget = SIZE - round(sparsity * SIZE)
    out = sparsify(A, sparsity=sparsity)
    kept = bits(out.weight).ravel() != 0
    assert out.nnz == budget
    assert kept[:budget].all()
    assert not kept[budget:].any()


@pytest.mark.parametrize("pattern", [0x3FFFFFFF, 0x3F800000, 0x3F803FFF])
def test_histogram_of_one_value(pattern: int) -> None:
    """Packed counts that spill into each other: one bin takes all, with the largest low bits."""
    A = np.full((SIDE, SIDE), pattern, np.uint32).view(np.float32)
    count, low = CPU.histogram(CPU.matrix(A), Scoring())
    b = pattern >> bg.LOW_BITS
    assert (int(count[b]), int(low[b])) == (SIZE, SIZE * (pattern & bg.LOW_MASK))
    assert (count.sum(), low.sum()) == (count[b], low[b])
    values, multiplicity = CPU.refine(CPU.matrix(A), Scoring(), b)
    assert (values.tolist(), multiplicity.tolist()) == ([pattern & bg.LOW_MASK], [SIZE])


@pytest.mark.parametrize("shape", [Shape.L1, Shape.L2, Shape.HYBRID])
@pytest.mark.parametrize("density", [1e-4, 0.01, 0.5])
def test_expected_count(normal: Any, shape: Shape, density: float) -> None:
    """Sums over 2^24 entries in float32, which stop growing; p near the grid's step."""
    s = np.abs(normal)
    count, low = (part.tolist() for part in CPU.histogram(CPU.matrix(normal), Scoring()))
    budget = round(density * SIZE)
    alpha, beta, first, last, top = bg.prepare(count, low, int(shape), 0.3, SIDE, SIDE, budget)
    problem = (top, int(shape), alpha, beta, budget)
    c, cut, _, _ = bg.solve_bins(count, low, first, last, *problem)
    assert cut < 0, "the bins of a smooth distribution answer without a second pass"
    scale = oracle.Scale(*bg.kernel_parameters(c, top, int(shape), alpha, beta))
    expected = sum(
        float(oracle.probabilities(rows, shape, scale).sum(dtype=np.float64))
        for rows in np.array_split(s, 64)
    )
    assert abs(expected / stream.UNIT - budget) <= 1e-3 * budget


def test_last_rows_and_columns(normal: Any) -> None:
    """The end of a large matrix drawn or valued otherwise than its beginning."""
    out = sparsify(normal, sparsity=0.9, law="l1", rescale=True, seed=7, stream=8)
    s = np.abs(normal)
    scale = oracle.solve(s, Shape.L1, 0.0, SIZE - round(0.9 * SIZE))
    for part in (slice(0, 3), slice(2047, 2050), slice(SIDE - 3, SIDE)):
        t = oracle.probabilities(s[part], Shape.L1, scale)
        expected = oracle.sample(
            normal[part], t, rescale=True, seed=7, stream=8, row_offset=part.start
        )
        np.testing.assert_array_equal(bits(out.weight[part]), bits(expected))


def test_one_long_row() -> None:
    """Columns past 2^24, in a matrix of one row that has no rows to share out."""
    n = (1 << 24) + 1027
    A = np.random.default_rng(1).standard_normal((1, n), np.float32)
    scale = oracle.solve(np.abs(A), Shape.L1, 0.0, n - round(0.99 * n))
    for group in ("tensor", "row"):
        out = sparsify(A, sparsity=0.99, law="l1", group=group)
        first = n - 3000
        t = oracle.probabilities(np.abs(A[:, first:]), Shape.L1, scale)
        expected = oracle.sample(
            A[:, first:], t, rescale=False, seed=0, stream=0, column_offset=first
        )
        np.testing.assert_array_equal(bits(out.weight[:, first:]), bits(expected))
        assert sparsify(A, sparsity=0.99, group=group).nnz == n - round(0.99 * n)


def periodic(shape: tuple[int, int], period: int) -> tuple[torch.Tensor, Any]:
    """A bfloat16 matrix that repeats one block of values, and that block as float32."""
    size = shape[0] * shape[1]
    block = oracle.round_bfloat16(np.random.default_rng(2).standard_normal(period))
    flat = torch.empty(size, dtype=torch.bfloat16)
    source = torch.from_numpy(block).bfloat16()
    whole = size // period
    flat[: whole * period].view(whole, period).copy_(source)
    flat[whole * period :] = source[: size - whole * period]
    return flat.view(shape), block


def values_at(block: Any, start: int, stop: int) -> Any:
    return block[np.arange(start, stop) % len(block)]


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 2**31 + 5), (2**16 + 1, 2**15)], ids=str)
def test_offsets_past_two_to_31(shape: tuple[int, int]) -> None:
    """Flat offsets or counts in 32 bits: entries past 2^31 lost, or written elsewhere.

    4.3 GB in bfloat16, and as much for each result.
    """
    m, n = shape
    size, period = m * n, 1 << 20
    A, block = periodic(shape, period)
    magnitude = np.abs(block)
    repeats = np.full(period, size // period) + (np.arange(period) < size % period)

    # The exact threshold: rank by value and multiplicity, then by index.
    budget = size - round(0.9 * size)
    out = sparsify(A, sparsity=0.9)
    assert out.nnz == budget
    flat = out.weight.view(-1)
    order = np.argsort(-magnitude, kind="stable")
    reached = np.cumsum(repeats[order])
    threshold = magnitude[order[np.searchsorted(reached, budget)]]
    assert np.float32(out.c) == threshold
    wanted = budget - int(repeats[magnitude > threshold].sum())
    ties_per_block = np.flatnonzero(magnitude == threshold)
    last_block, rank = divmod(wanted - 1, len(ties_per_block))
    stop = last_block * period + int(ties_per_block[rank]) + 1
    for start in (0, stop - 2000, 2**31 - 2000, size - 4000):
        index = np.arange(start, min(start + 4000, size))
        a = values_at(block, start, int(index[-1]) + 1)
        keep = (np.abs(a) > threshold) | ((np.abs(a) == threshold) & (index < stop))
        got = flat[start : int(index[-1]) + 1].float().numpy()
        np.testing.assert_array_equal(got, np.where(keep, a, 0))
    del out, flat

    # The draw, with the budget from the block's histogram times its repeats.
    out = sparsify(A, sparsity=0.9, law="l1", rescale=True, seed=3, stream=4)
    pattern = magnitude.view(np.uint32)
    count, low = np.zeros(bg.BINS, np.int64), np.zeros(bg.BINS, np.int64)
    np.add.at(count, pattern >> bg.LOW_BITS, repeats)
    np.add.at(low, pattern >> bg.LOW_BITS, repeats * (pattern & bg.LOW_MASK))
    problem = (count.tolist(), low.tolist())
    _, _, first, last, top = bg.prepare(*problem, int(Shape.L1), 0.0, m, n, budget)
    c, cut, above, below = bg.solve_bins(
        *problem, first, last, top, int(Shape.L1), 0.0, 0.0, budget
    )
    assert cut < 0, (above, below)
    scale = oracle.Scale(*bg.kernel_parameters(c, top, int(Shape.L1), 0.0, 0.0))
    p = np.minimum(1.0, scale.C * magnitude.astype(np.float64) * scale.scale / stream.UNIT)
    assert abs((p * repeats).sum() - budget) < 1e-3 * budget
    assert abs(out.nnz - budget) < 1e-3 * budget + 6 * budget**0.5
    assert out.nnz == sum(
        int(torch.count_nonzero(part)) for part in out.weight.view(-1).split(2**28)
    )
    for start in (0, 2**31 - n if m > 1 else 2**31 - 4096, size - min(n, 4096)):
        width = min(n, 4096)
        a = values_at(block, start, start + width)[None]
        t = oracle.probabilities(np.abs(a), Shape.L1, scale)
        expected = oracle.sample(
            a, t, rescale=True, seed=3, stream=4, row_offset=start // n, column_offset=start % n
        )
        got = out.weight.view(-1)[start : start + width].float().numpy()
        np.testing.assert_array_equal(got, oracle.round_bfloat16(expected)[0])


def test_low_rank_of_a_large_matrix() -> None:
    """Scores from factors at 2^24 entries, in as many chunks as the buffer allows."""
    A = np.random.default_rng(3).standard_normal((SIDE, SIDE), np.float32)
    left, right = integer_factors(SIDE, SIDE)
    out = sparsify(A, sparsity=0.9, score="principal", factors=(left, right))
    budget = SIZE - round(0.9 * SIZE)
    assert out.nnz == budget
    B = np.abs(left @ right)
    threshold = np.float32(out.c)
    kept = out.weight != 0
    assert np.count_nonzero(threshold < B) < budget <= np.count_nonzero(threshold <= B)
    ties = np.flatnonzero((threshold == B).ravel())[: budget - np.count_nonzero(threshold < B)]
    expected = (threshold < B).ravel()
    expected[ties] = True
    np.testing.assert_array_equal(kept.ravel(), expected)
