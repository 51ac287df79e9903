"""The CPU kernels against the oracle, bit for bit."""

import subprocess
import sys
from contextlib import nullcontext
from typing import Any

import numba
import numpy as np
import pytest
from spectral_kernels import sparsify
from spectral_kernels.backends.cpu.backend import CPU
from spectral_kernels.backends.protocol import Draw, LawTable, Scoring
from spectral_kernels.reference import budget as bg
from spectral_kernels.reference import oracle, rows, stream
from spectral_kernels.reference.laws import Base, Shape

from tests.support.cases import (
    DTYPES,
    GROUPS,
    LAWS,
    Case,
    bits,
    case,
    integer_factors,
    mixed_values,
    oracle_bits,
    oracle_sparsify,
)

SCORES = ("magnitude", "principal", "aligned", "mixture")


def agree(one: Case, **options: Any) -> None:
    """`sparsify` of the array is the oracle's matrix, and counts its nonzeros."""
    expected = oracle_sparsify(one.matrix, **options)
    assert np.isfinite(expected).all(), "the case must not overflow, or it tests a refusal"
    got = sparsify(one.array, **options)
    np.testing.assert_array_equal(bits(got.weight), oracle_bits(expected, one.dtype))
    assert got.nnz == np.count_nonzero(expected)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("law", LAWS)
def test_every_law_and_score(law: str, dtype: str, group: str) -> None:
    """A kernel that rounds, contracts, orders or draws otherwise than the oracle."""
    m, n = (7, 203) if group == "row" else (37, 103)
    one = case(mixed_values((m, n), 1), dtype)
    rng = np.random.default_rng(2)
    row = rng.uniform(0.5, 2.0, m).astype(np.float32)
    column = rng.uniform(0.5, 2.0, n).astype(np.float32)
    column[3] = 0.0
    vectors = [(None, None), (row, None), (None, column), (row, column)]
    for k, score in enumerate(SCORES):
        for rescale in (False, True):
            chosen = vectors[(k + 2 * rescale) % 4]
            agree(
                one, sparsity=0.7, law=law, law_parameter=LAWS[law], rescale=rescale, score=score,
                factors=None if score == "magnitude" else integer_factors(m, n),
                mixture=(0.001, 0.3), row=chosen[0], column=chosen[1], group=group,
                seed=2**64 - 1 - k, stream=2**32 - 1 - k, row_offset=2**32 - 5, column_offset=k,
            )  # fmt: skip


SHAPES = [
    (1, 1), (1, 2), (1, 7), (7, 1), (5, 6), (37, 1003), (1, 1023), (2, 1024), (3, 1025),
    (1, 4096), (2, 4097), (300, 1), (4097, 3),
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_odd_shapes(shape: tuple[int, int], dtype: str) -> None:
    """A ragged block, an empty budget or a single row that a kernel handles apart."""
    one = case(mixed_values(shape, 5), dtype)
    for law in ("threshold", "l1", "l2"):
        for sparsity in (0.0, 0.4, 0.97):
            agree(one, sparsity=sparsity, law=law, rescale=True, column_offset=3)
    if shape[0] <= 300:
        for law in ("threshold", "l1"):
            for sparsity in (0.4, 0.97):
                agree(one, sparsity=sparsity, law=law, group="row", row_offset=2**33)


@pytest.mark.parametrize("rank", [1, 7, 8, 9, 21])
@pytest.mark.parametrize("score", SCORES[1:])
def test_low_rank(score: str, rank: int) -> None:
    """A low rank summed in another order, or fused, or for another row than the one it scores."""
    m, n = 70, 2051  # three strips of rows, three blocks of columns
    one = case(mixed_values((m, n), 7), "float32")
    rng = np.random.default_rng(rank)
    left, right = (rng.standard_normal(s).astype(np.float32) for s in ((m, rank), (rank, n)))
    common = {"score": score, "factors": (left, right), "mixture": (0.001, 0.3)}
    agree(one, sparsity=0.9, **common)
    agree(one, sparsity=0.9, law="l1", row=np.linspace(0.5, 2.0, m, dtype=np.float32), **common)
    agree(one, sparsity=0.6, group="row", **common)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("score", SCORES[1:])
def test_low_rank_with_ties(score: str, dtype: str) -> None:
    """Ties counted in the order of the work, strip by strip, and not of the index."""
    m, n = 70, 2051
    one = case(mixed_values((m, n), 7), dtype)
    common = {"score": score, "factors": integer_factors(m, n), "mixture": (0.001, 0.0)}
    for sparsity in (0.02, 0.3, 0.55, 0.9):
        agree(one, sparsity=sparsity, **common)


@pytest.mark.parametrize("law", ["threshold", "l1"])
def test_rows_longer_than_the_cache(law: str) -> None:
    """Long rows, solved as tensors one by one, that draw at row 0 or with another's vector."""
    m, n = 3, (1 << 16) + 5
    one = case(mixed_values((m, n), 9), "float32")
    row = np.array([0.5, 1.0, 2.0], np.float32)
    options = {"law": law, "group": "row", "sparsity": 0.95, "rescale": True}
    agree(one, row=row, seed=4, row_offset=7, column_offset=2, **options)
    factors = integer_factors(m, n)
    agree(one, row=row, score="principal", factors=factors, **options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_thread_count_does_not_show(dtype: str) -> None:
    """Work cut by threads where a cut can change a sum, a tie or a draw."""
    m, n = 300, 1003
    one = case(mixed_values((m, n), 11), dtype)
    runs = [
        {"law": "threshold"},
        {"law": "l1", "rescale": True},
        {"law": "hybrid"},
        {"law": "row-l1"},
        {"law": "threshold", "group": "row"},
        {"law": "l1", "group": "row"},
        {"law": "l1", "score": "principal", "factors": integer_factors(m, n)},
    ]
    before = numba.get_num_threads()
    results = []
    try:
        for threads in (1, before):
            numba.set_num_threads(threads)
            results.append([sparsify(one.array, sparsity=0.8, **run) for run in runs])
    finally:
        numba.set_num_threads(before)
    for run, first, second in zip(runs, *results, strict=True):
        np.testing.assert_array_equal(bits(first.weight), bits(second.weight), err_msg=str(run))
        assert (first.nnz, first.c) == (second.nnz, second.c)
    assert numba.get_num_threads() == before


@pytest.mark.parametrize("tasks", [1, 2, 3, 7, 64])
def test_task_count_does_not_show(tasks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of units that overlap or leave a gap where the units do not divide evenly."""
    one = case(mixed_values((37, 2050), 12), "float32")
    monkeypatch.setattr(
        "spectral_kernels.backends.cpu.backend._threads", lambda A: nullcontext(tasks)
    )
    factors = integer_factors(37, 2050)
    agree(one, sparsity=0.8, score="principal", factors=factors)
    agree(one, sparsity=0.8, law="l1", score="aligned", factors=factors)
    for law in ("threshold", "l1", "l2"):
        agree(one, sparsity=0.8, law=law, rescale=True)
        agree(one, sparsity=0.8, law=law, group="row")


@pytest.mark.parametrize("dtype", DTYPES)
def test_shards_make_the_whole(dtype: str) -> None:
    """A shard that cannot be told the whole's budget, or draws otherwise than the whole."""
    m, n = 37, 1003
    one = case(mixed_values((m, n), 13), dtype)
    row = np.linspace(0.5, 2.0, m, dtype=np.float32)
    column = np.linspace(2.0, 0.5, n, dtype=np.float32)
    whole = sparsify(
        one.array, sparsity=0.8, law="l1", rescale=True, row=row, column=column, seed=5, stream=6,
        row_offset=100, column_offset=50,
    )  # fmt: skip
    tops, lefts = [0, 10, 37], [0, 333, 334, 1003]
    parts = [
        (slice(t, tops[k + 1]), slice(c, lefts[q + 1]))
        for k, t in enumerate(tops[:-1])
        for q, c in enumerate(lefts[:-1])
    ]
    matrices = {str(part): CPU.matrix(one.array[part]) for part in parts}
    scorings = {
        str((r, c)): Scoring(row=CPU.vector(row[r]), column=CPU.vector(column[c])) for r, c in parts
    }
    histograms = [CPU.histogram(matrices[str(part)], scorings[str(part)]) for part in parts]
    count, low = (np.sum([h[k] for h in histograms], axis=0) for k in (0, 1))
    s = oracle.score(one.matrix, row=row, column=column)
    np.testing.assert_array_equal([count, low], oracle.histogram(s))

    solved = oracle.solve(s, Shape.L1, 0.0, m * n - round(0.8 * m * n))
    table = LawTable(np.array([[solved.C, 0, 0, solved.scale]], np.float32), Shape.L1, True)
    together, kept = np.empty_like(bits(whole.weight)), 0
    for part in parts:
        draw = Draw(5, 6, 100 + part[0].start, 50 + part[1].start)
        shard = CPU.empty_like(one.array[part])
        key = str(part)
        kept += CPU.sample(matrices[key], scorings[key], table, draw, CPU.matrix(shard))
        together[part] = bits(shard)
    np.testing.assert_array_equal(together, bits(whole.weight))
    assert kept == whole.nnz


def test_row_shards_of_row_groups() -> None:
    """Rows that are groups of their own need no exchange: each shard alone gives its part."""
    A = mixed_values((20, 301), 14).astype(np.float32)
    for law in ("threshold", "l1"):
        options: Any = {"sparsity": 0.8, "law": law, "group": "row", "seed": 3}
        whole = sparsify(A, **options).weight
        for part in (slice(0, 7), slice(7, 8), slice(8, 20)):
            shard = sparsify(A[part], row_offset=part.start, **options).weight
            np.testing.assert_array_equal(bits(shard), bits(whole[part]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_16_bit_number(dtype: str) -> None:
    """A 16-bit format read or rounded wrong anywhere: subnormals, ties, the largest, the smallest.

    Probabilities come from the low rank, so that every number meets some of every size.
    """
    patterns = np.arange(1 << 16, dtype=np.uint16)
    exponent = np.uint16(0x7C00 if dtype == "float16" else 0x7F80)
    patterns = patterns[patterns & exponent != exponent].reshape(-1, 256)
    if dtype == "float16":
        matrix = patterns.view(np.float16)
        one = Case(matrix, matrix, dtype)
    else:
        one = case((patterns.astype(np.uint32) << 16).view(np.float32), dtype)
    np.testing.assert_array_equal(bits(one.array), patterns)
    agree(one, sparsity=0.4, law="threshold")

    m, n = patterns.shape
    left, right = integer_factors(m, n)
    s = oracle.score(one.matrix, Base.PRINCIPAL, left @ right)
    scoring = Scoring(Base.PRINCIPAL, left, right)
    for C in (1e6, 4e5, 123_456.7):
        for seed in range(4):
            t = oracle.probabilities(s, Shape.L1, oracle.Scale(C))
            expected = oracle.sample(one.matrix, t, rescale=True, seed=seed, stream=0)
            out = CPU.empty_like(one.array)
            table = LawTable(np.array([[C, 0, 0, 1]], np.float32), Shape.L1, True)
            CPU.sample(CPU.matrix(one.array), scoring, table, Draw(seed), CPU.matrix(out))
            np.testing.assert_array_equal(bits(out), oracle_bits(expected, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_histogram_and_refine(dtype: str) -> None:
    """Packed counts that spill, zeros counted, or a refined bin that misses an entry."""
    one = case(mixed_values((37, 1003), 15), dtype)
    A = CPU.matrix(one.array)
    s = oracle.score(one.matrix)
    count, low = CPU.histogram(A, Scoring())
    np.testing.assert_array_equal([count, low], oracle.histogram(s))
    occupied = np.flatnonzero(count)
    for cut in (occupied[0], occupied[len(occupied) // 2], occupied[-1], 0):
        got, expected = CPU.refine(A, Scoring(), int(cut)), oracle.refine(s, int(cut))
        np.testing.assert_array_equal(got[0], expected[0])
        np.testing.assert_array_equal(got[1], expected[1])


def test_histogram_of_any_float32() -> None:
    """Subnormal or huge scores in a wrong bin."""
    patterns = np.random.default_rng(16).integers(0, 1 << 32, (500, 700), dtype=np.uint32)
    A = patterns.view(np.float32)
    # NaN's sign is the product of no computation here: every bin, those of NaN too, must agree.
    count, low = CPU.histogram(CPU.matrix(A), Scoring())
    np.testing.assert_array_equal([count, low], oracle.histogram(np.abs(A)))
    assert count[bg.FINITE_BINS :].any()
    assert count[:32].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_row_l1(dtype: str) -> None:
    """Sums whose order shows, or that overflow their fixed point."""
    values = mixed_values((37, 5003), 17)
    values[3] = 0.0
    values[4] = 6e4
    one = case(values, dtype)
    with np.errstate(over="ignore"):
        expected = rows.row_l1(np.abs(one.matrix).astype(np.float32))
    got = CPU.row_l1(CPU.matrix(one.array))
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))
    exact = np.abs(one.matrix.astype(np.float64)).sum(axis=1)
    np.testing.assert_allclose(got, exact, rtol=2**-23)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_all_finite(dtype: str, bad: float) -> None:
    """One bad entry, at the end of a ragged block, that goes unseen."""
    values = mixed_values((3, 1027), 18)
    assert CPU.all_finite(CPU.matrix(case(values, dtype).array))
    values[2, 1026] = bad
    assert not CPU.all_finite(CPU.matrix(case(values, dtype).array))


@pytest.mark.parametrize("budget", [1, 60, 101, 150, 203])
def test_row_solutions(budget: int) -> None:
    """A row's histogram not cleaned for the next row, or a row's tie stop off by one."""
    one = case(np.round(mixed_values((40, 203), 19) * 300) / 300, "float32")
    one.matrix[7] = 0.0
    A, s = CPU.matrix(one.array), oracle.score(one.matrix)
    bits, stops, nonfinite = CPU.row_thresholds(A, Scoring(), budget)
    assert nonfinite == 0
    for i in range(40):
        keep = oracle.threshold_mask(s[i : i + 1], budget)
        value = bits[i : i + 1].view(np.float32)[0]
        got = oracle.keep_scores(s[i : i + 1], np.ones((1, 203)), value, int(stops[i]))
        np.testing.assert_array_equal(got != 0, keep)
    if budget == 0:
        # As the whole tensor's: a threshold that no finite score reaches, and not one read from
        # before the start of an empty list, which is high enough on most days.
        assert (bits >= bg.FINITE_BINS << bg.LOW_BITS).all()
        return
    for shape, parameter in ((Shape.L1, 0.0), (Shape.HYBRID, 0.3), (Shape.TRIMMED, 0.0)):
        table, _ = CPU.row_laws(A, Scoring(), shape, parameter, budget)
        solved = [oracle.solve(s[i : i + 1], shape, parameter, budget) for i in range(40)]
        expected = np.array([[x.C, x.alpha, x.beta, x.scale] for x in solved], np.float32)
        np.testing.assert_array_equal(table.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("row_offset", [0, 2**32 - 17, 2**40 + 3, 2**63 - 40])
@pytest.mark.parametrize("column_offset", [0, 1, 2, 3, 1021, 2**34 - 103])
def test_offsets(row_offset: int, column_offset: int) -> None:
    """Offsets cut to 32 bits, or a quad that straddles two blocks."""
    one = case(mixed_values((37, 103), 20), "float32")
    agree(
        one, sparsity=0.5, law="l1", seed=2**64 - 1, stream=2**32 - 1,
        row_offset=row_offset, column_offset=column_offset,
    )  # fmt: skip


def test_vector_arguments_of_any_kind() -> None:
    """A strided or wider vector read as if it were contiguous float32."""
    A = mixed_values((37, 103), 21).astype(np.float32)
    row, column = np.linspace(0.5, 2.0, 37), np.linspace(2.0, 0.5, 103)
    left, right = integer_factors(37, 103)
    expected = sparsify(
        A, sparsity=0.5, score="principal", factors=(left, right),
        row=row.astype(np.float32), column=column.astype(np.float32),
    )  # fmt: skip
    got = sparsify(
        A, sparsity=0.5, score="principal", factors=(np.asfortranarray(left), right.astype(float)),
        row=row, column=np.repeat(column, 2)[::2],
    )  # fmt: skip
    np.testing.assert_array_equal(bits(got.weight), bits(expected.weight))


def test_draws_match_the_stream_entry_by_entry() -> None:
    """A whole call whose keep decisions are not u < t of the published stream."""
    A = np.full((9, 1030), 2.0, np.float32)
    u = stream.draws(A.shape, 77, 88, row_offset=2**35, column_offset=2)
    solved = oracle.solve(A, Shape.L1, 0.0, A.size - round(0.6 * A.size))
    t = float(oracle.probabilities(A, Shape.L1, solved)[0, 0])
    got = sparsify(A, sparsity=0.6, law="l1", seed=77, stream=88, row_offset=2**35, column_offset=2)
    np.testing.assert_array_equal(got.weight != 0, u < t)


def test_torch_keeps_its_threads() -> None:
    """Numba's start, which sets the number of threads of an OpenMP library shared with torch."""
    probe = (
        "import torch, spectral_kernels\n"
        "for threads in (1, 3):\n"
        "    torch.set_num_threads(threads)\n"
        "    spectral_kernels.sparsify(torch.randn(9, 7), sparsity=0.5, law='l1')\n"
        "    assert torch.get_num_threads() == threads, torch.get_num_threads()\n"
    )
    subprocess.run([sys.executable, "-c", probe], check=True)
