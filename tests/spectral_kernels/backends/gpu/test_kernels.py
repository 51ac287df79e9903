"""The Triton kernels against the oracle, bit for bit: on a CUDA device, or in the interpreter."""

import math
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from spectral_kernels.backends.cpu.backend import CPU
from spectral_kernels.backends.gpu.backend import GPU, GPUBackend
from spectral_kernels.backends.gpu.triton.kernels import scored_tile
from spectral_kernels.backends.protocol import Draw, LawTable, Matrix, Scoring, Thresholds
from spectral_kernels.reference import oracle, rows
from spectral_kernels.reference.budget import BINS
from spectral_kernels.reference.laws import Base, Shape

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = ["float16", "bfloat16", "float32", "float64"]
SHAPES = [(1, 1), (1, 37), (37, 1), (37, 1003), (8, 64)]
LAWS = {
    Shape.L1: oracle.Scale(2.0**22),
    Shape.L2: oracle.Scale(2.0**21, scale=0.5),
    Shape.HYBRID: oracle.Scale(2.0**22, alpha=0.3, beta=0.7),
    Shape.MAXIMUM: oracle.Scale(2.0**21, beta=1.7),
    Shape.TRIMMED: oracle.Scale(2.0**22, alpha=0.5),
}
#: One tile to a few rows: the interpreter pays for tiles, not for entries.
WIDE = GPUBackend(entries=4096)


def tensor_of(values: np.ndarray, dtype: str) -> torch.Tensor:
    return torch.tensor(values, device=DEVICE).to(getattr(torch, dtype))


def gaussian(shape: tuple[int, int], dtype: str, seed: int = 0) -> torch.Tensor:
    """A matrix with zeros and with one subnormal of its dtype."""
    values = np.random.default_rng(seed).standard_normal(shape)
    values[np.abs(values) < 0.05] = 0.0
    values[-1, -1] = -3e-39 if dtype != "float16" else -3e-7
    return tensor_of(values, dtype)


def oracle_array(tensor: torch.Tensor) -> np.ndarray:
    """The matrix as the oracle takes it: bfloat16 as float32."""
    tensor = tensor.cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def oracle_sample(A: torch.Tensor, s: np.ndarray, shape: Shape, law: oracle.Scale, **arguments):
    t = oracle.probabilities(s, shape, law)
    drawn = oracle.sample(oracle_array(A), t, **arguments)
    return oracle.round_bfloat16(drawn) if A.dtype == torch.bfloat16 else drawn


def table(*laws: oracle.Scale) -> np.ndarray:
    return np.array([(law.C, law.alpha, law.beta, law.scale) for law in laws], np.float32)


def drawn(
    backend: GPUBackend, A: torch.Tensor, law: LawTable, draw: Draw, scoring: Scoring | None = None
) -> tuple[np.ndarray, int]:
    out = backend.empty_like(A)
    kept = backend.sample(backend.matrix(A), scoring or Scoring(), law, draw, backend.matrix(out))
    return oracle_array(out), kept


def assert_same_bits(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == expected.dtype
    assert found.tobytes() == np.ascontiguousarray(expected).tobytes()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sample_equals_oracle(shape: tuple[int, int], dtype: str) -> None:
    """A wrong tail, row stride, word of the stream, rounding of the quotient or of 16 bits."""
    A = gaussian(shape, dtype)
    law = LAWS[Shape.L1]
    found, kept = drawn(WIDE, A, LawTable(table(law), Shape.L1, True), Draw(seed=7, stream=3))
    s = oracle.score(oracle_array(A))
    expected = oracle_sample(A, s, Shape.L1, law, rescale=True, seed=7, stream=3)
    assert_same_bits(found, expected)
    assert kept == np.count_nonzero(expected)


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("shape", list(Shape))
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_sample_of_every_law(shape: Shape, dtype: str, rescale: bool) -> None:
    """A law's shape mixed up, a product fused or reordered, values divided that should not be."""
    A = gaussian((5, 131), dtype, 1)
    law = LAWS[shape]
    found, _ = drawn(WIDE, A, LawTable(table(law), shape, rescale), Draw(seed=1))
    s = oracle.score(oracle_array(A))
    expected = oracle_sample(A, s, shape, law, rescale=rescale, seed=1, stream=0)
    assert_same_bits(found, expected)
    assert 0 < np.count_nonzero(expected) < np.count_nonzero(s)


@pytest.mark.parametrize("entries", [8, 32, 256, 2048])
def test_block_size_does_not_show(entries: int) -> None:
    """Draws addressed by their place in a tile instead of in the matrix; counts lost at seams."""
    A = gaussian((6, 45), "float32", 2)
    law = LawTable(table(LAWS[Shape.L1]), Shape.L1, True)
    expected, kept = drawn(WIDE, A, law, Draw(seed=2))
    found, found_kept = drawn(GPUBackend(entries=entries), A, law, Draw(seed=2))
    assert_same_bits(found, expected)
    assert found_kept == kept


@settings(max_examples=8)
@given(row=st.integers(1, 8), column=st.integers(1, 42))
def test_shards_draw_what_the_whole_draws(row: int, column: int) -> None:
    """A shard whose first column is no multiple of four, or whose row is counted from zero."""
    A = gaussian((9, 43), "bfloat16", 3)
    law = LawTable(table(LAWS[Shape.L1]), Shape.L1, True)
    whole, kept = drawn(WIDE, A, law, Draw(seed=3, row=11, column=6))
    total = 0
    for i in (slice(0, row), slice(row, 9)):
        for j in (slice(0, column), slice(column, 43)):
            draw = Draw(seed=3, row=11 + i.start, column=6 + j.start)
            piece, some = drawn(WIDE, A[i, j], law, draw)
            np.testing.assert_array_equal(piece, whole[i, j])
            total += some
    assert total == kept


@pytest.mark.parametrize(
    ("row", "column"), [(2**33 + 5, 0), (2**62 + 1, 7), (0, 2**33 + 6), (2**32 - 2, 2**31 - 3)]
)
def test_positions_past_32_bits(row: int, column: int) -> None:
    """A row, column, seed or stream that is cut to 32 bits, or taken as signed."""
    A = gaussian((4, 18), "float32", 4)
    law = LAWS[Shape.L1]
    draw = Draw(seed=2**64 - 3, stream=2**32 - 1, row=row, column=column)
    found, _ = drawn(WIDE, A, LawTable(table(law), Shape.L1, True), draw)
    expected = oracle_sample(
        A, oracle.score(oracle_array(A)), Shape.L1, law, rescale=True, seed=draw.seed,
        stream=draw.stream, row_offset=row, column_offset=column,
    )  # fmt: skip
    assert_same_bits(found, expected)


@triton.jit
def one_tile(src, out, i: tl.int64, j: tl.int64, m: tl.int64, n: tl.int64, COLUMNS: tl.constexpr):
    """Copy the first row of the tile at (i, j)."""
    rows_of_tile = i + tl.arange(0, 1).to(tl.int64)
    x, _, _, _, _ = scored_tile(
        src, rows_of_tile, m, n, j, 0, None, None, 0.0, 0.0, None, None,
        0, 1, COLUMNS, 16, 0, "ieee",
    )  # fmt: skip
    tl.store(out + tl.arange(0, COLUMNS)[None, :], x)


@pytest.mark.slow
def test_tile_past_31_bits_of_offset() -> None:
    """An offset into the matrix that wraps at 2^31 entries."""
    n = 2**30
    A = torch.empty(2 * n + 64, dtype=torch.float16, device=DEVICE)
    A[-64:] = torch.arange(64)
    out = torch.zeros(32, dtype=torch.float16, device=DEVICE)
    one_tile[(1,)](A, out, 2, 32, 3, n, COLUMNS=32)
    assert out.cpu().tolist() == list(range(32, 64))


def low_rank_scoring(m: int, n: int, base: Base, integers: bool) -> tuple[Scoring, np.ndarray]:
    """Factors of rank 19 with vectors, and B; small integers multiply exactly in any order."""
    rng = np.random.default_rng(5)
    left, right = rng.standard_normal((m, 19)), rng.standard_normal((19, n))
    if integers:
        left, right = np.rint(left), np.rint(right)
    left, right = left.astype(np.float32), right.astype(np.float32)
    row, column = rng.random(m, dtype=np.float32), rng.random(n, dtype=np.float32)
    scoring = Scoring(
        base, GPU.vector(left), GPU.vector(right), (0.6, 0.8), GPU.vector(row), GPU.vector(column)
    )
    return scoring, left @ right


def oracle_score(A: torch.Tensor, scoring: Scoring, B: np.ndarray | None) -> np.ndarray:
    vectors = [None if v is None else v.cpu().numpy() for v in (scoring.row, scoring.column)]
    return oracle.score(oracle_array(A), scoring.base, B, scoring.weights, *vectors)


@pytest.mark.parametrize("base", list(Base))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_of_every_base(base: Base, dtype: str) -> None:
    """A factor of the score left out, taken from another row or column, or multiplied too early."""
    A = gaussian((35, 70), dtype, 6)
    scoring, B = low_rank_scoring(35, 70, base, integers=True)
    s = oracle_score(A, scoring, B)
    backend = GPUBackend(entries=4096, rows=16, columns=32)
    law = oracle.Scale(2.0**22, scale=0.25)
    found, _ = drawn(backend, A, LawTable(table(law), Shape.L1, True), Draw(seed=5), scoring)
    expected = oracle_sample(A, s, Shape.L1, law, rescale=True, seed=5, stream=0)
    assert_same_bits(found, expected)
    for found_part, part in zip(
        backend.histogram(backend.matrix(A), scoring), oracle.histogram(s), strict=True
    ):
        np.testing.assert_array_equal(found_part, part)


def test_decisions_that_differ_under_real_factors() -> None:
    """A low-rank product less accurate than float32 sums of another order are."""
    A = gaussian((64, 256), "float32", 7)
    scoring, B = low_rank_scoring(64, 256, Base.PRINCIPAL, integers=False)
    law = oracle.Scale(2.0**23, scale=0.25)
    found, _ = drawn(GPU, A, LawTable(table(law), Shape.L1, False), Draw(seed=5), scoring)
    expected = oracle_sample(
        A, oracle_score(A, scoring, B), Shape.L1, law, rescale=False, seed=5, stream=0
    )
    # A relative error of 1e-6 in p flips a decision in 1e6; none in 16,384 is the likely count.
    assert np.count_nonzero(found != expected) <= 2


def test_each_row_has_its_own_law() -> None:
    """Parameters read from another row, or all from the first."""
    A = gaussian((5, 300), "float32", 8)
    laws = [oracle.Scale(2.0 ** (18 + i), alpha=0.1 * i, beta=0.5, scale=0.5**i) for i in range(5)]
    found, _ = drawn(WIDE, A, LawTable(table(*laws), Shape.HYBRID, True), Draw(seed=8))
    for i, law in enumerate(laws):
        row = A[i : i + 1]
        s = oracle.score(oracle_array(row))
        expected = oracle_sample(
            row, s, Shape.HYBRID, law, rescale=True, seed=8, stream=0, row_offset=i
        )
        assert_same_bits(found[i : i + 1], expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_histogram_equals_oracle(shape: tuple[int, int], dtype: str) -> None:
    """Zeros counted, packed sums spilling over, infinities or NaN lost, copies not merged."""
    A = gaussian(shape, dtype, 9)
    if A.numel() > 36:
        A.view(-1)[5], A.view(-1)[6] = math.inf, math.nan
    matrix = WIDE.matrix(A)
    s = oracle.score(oracle_array(A))
    for found, expected in zip(WIDE.histogram(matrix, Scoring()), oracle.histogram(s), strict=True):
        assert found.dtype == np.int64
        assert found.shape == (BINS,)
        np.testing.assert_array_equal(found, expected)
    assert WIDE.all_finite(matrix) == bool(np.isfinite(s).all())


def test_refine_equals_oracle() -> None:
    """A neighbouring bin's entries counted in, or repeated values counted once."""
    A = tensor_of(np.random.default_rng(10).integers(0, 40, (20, 90)) / 64 + 0.5, "float32")
    s = oracle.score(oracle_array(A))
    for value in (0.5, 0.75, 1.1):
        cut = int(np.float32(value).view(np.uint32) >> 18)
        low, multiplicity = WIDE.refine(WIDE.matrix(A), Scoring(), cut)
        expected = oracle.refine(s, cut)
        np.testing.assert_array_equal(low, expected[0])
        np.testing.assert_array_equal(multiplicity, expected[1])


def test_refine_leaves_zeros_out() -> None:
    """A zero counted as the least subnormal's neighbour, in bin 0."""
    A = tensor_of(np.array([[0.0, 1e-45, 0.0, 3e-45]]), "float32")
    low, multiplicity = GPU.refine(GPU.matrix(A), Scoring(), 0)
    assert (low.tolist(), multiplicity.tolist()) == ([1, 2], [1, 1])


@pytest.mark.parametrize("shape", [(1, 1003), (301, 3), (9, 150)], ids=str)
def test_tie_stop_in_index_order(shape: tuple[int, int]) -> None:
    """Ties counted in tile order, or one too few or too many before the stop."""
    A = tensor_of(np.random.default_rng(11).integers(0, 4, shape).astype(float), "bfloat16")
    backend = GPUBackend(entries=128)
    matrix, flat = backend.matrix(A), oracle_array(A).ravel()
    for value in (0.0, 1.0, 3.0):
        ties = np.flatnonzero(flat == value)
        pattern = int(np.float32(value).view(np.uint32))
        for wanted in (1, ties.size // 2, ties.size):
            stop = backend.tie_stop(matrix, Scoring(), pattern, wanted)
            assert stop == ties[wanted - 1] + 1
        assert backend.tie_stop(matrix, Scoring(), pattern, ties.size + 1) == flat.size


def test_tie_stop_under_a_low_rank_score() -> None:
    """A tie looked for in the wrong rows or columns of the factors."""
    A = tensor_of(np.ones((35, 70)), "float32")
    scoring, B = low_rank_scoring(35, 70, Base.PRINCIPAL, integers=True)
    scoring = Scoring(Base.PRINCIPAL, scoring.left, scoring.right)
    backend = GPUBackend(rows=16, columns=32)
    ties = np.flatnonzero(np.abs(B).ravel() == 4)
    pattern = int(np.float32(4).view(np.uint32))
    for wanted in (1, ties.size // 2, ties.size):
        stop = backend.tie_stop(backend.matrix(A), scoring, pattern, wanted)
        assert stop == ties[wanted - 1] + 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 37), (37, 1), (13, 203)], ids=str)
def test_keep_largest_is_exact_with_ties(shape: tuple[int, int], dtype: str) -> None:
    """A count off by the ties, ties kept in another order, zeros counted as kept."""
    values = np.random.default_rng(12).integers(-3, 4, shape).astype(float)
    A = tensor_of(values, dtype)
    s = oracle.score(oracle_array(A))
    for budget in (1, A.numel() // 2, A.numel()):
        mask = oracle.threshold_mask(s, budget)
        threshold = s[mask].min()
        stop = np.flatnonzero((s.ravel() == threshold) & mask.ravel())[-1] + 1
        solved = Thresholds(np.array([threshold]).view(np.uint32), np.array([stop]))
        out = WIDE.empty_like(A)
        kept = WIDE.keep_largest(WIDE.matrix(A), Scoring(), solved, WIDE.matrix(out))
        expected = np.where(mask, oracle_array(A), 0).astype(oracle_array(A).dtype)
        assert_same_bits(oracle_array(out), expected)
        assert kept == np.count_nonzero(expected)


@pytest.mark.parametrize("budget", [1, 40, 90, 103])
def test_row_thresholds_equal_those_of_the_cpu(budget: int) -> None:
    """A bit lost in the bisection, ties past the first block, rows with too few positive scores."""
    values = np.random.default_rng(13).integers(0, 9, (6, 103)) / 4
    values[2], values[3, 7] = 0.0, math.inf
    A = tensor_of(values, "float32")
    found = WIDE.row_thresholds(WIDE.matrix(A), Scoring(), budget)
    expected = CPU.row_thresholds(CPU.matrix(values.astype(np.float32)), Scoring(), budget)
    assert found[2] == expected[2] == 1
    rest = [0, 1, 2, 4, 5]
    np.testing.assert_array_equal(found[0][rest], expected[0][rest])
    np.testing.assert_array_equal(found[1][rest], expected[1][rest])
    solved = Thresholds(*found[:2])
    out = WIDE.empty_like(A)
    WIDE.keep_largest(WIDE.matrix(A), Scoring(), solved, WIDE.matrix(out))
    counts = np.count_nonzero(oracle_array(out), axis=1)
    np.testing.assert_array_equal(
        counts[rest], np.minimum(budget, np.count_nonzero(values, axis=1))[rest]
    )


def test_row_threshold_over_several_blocks() -> None:
    """Counts, or the place of a tie, that start afresh in each block of a long row."""
    values = np.random.default_rng(14).integers(1, 5, (1, 9000)).astype(np.float32)
    A = tensor_of(values, "float32")
    for budget in (100, 8000):
        found = WIDE.row_thresholds(WIDE.matrix(A), Scoring(), budget)
        expected = CPU.row_thresholds(CPU.matrix(values), Scoring(), budget)
        assert [part.tolist() for part in found[:2]] == [part.tolist() for part in expected[:2]]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_score_bits_equal_oracle(dtype: str) -> None:
    """Scores of one row taken for another's, or the vectors of the score left out."""
    A = gaussian((7, 90), dtype, 15)
    row, column = np.linspace(0.5, 2, 7, dtype=np.float32), np.linspace(1, 3, 90, dtype=np.float32)
    scoring = Scoring(row=WIDE.vector(row), column=WIDE.vector(column))
    expected = oracle_score(A, scoring, None)
    assert_same_bits(WIDE.score_bits(WIDE.matrix(A), scoring), expected.view(np.uint32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_row_l1_equals_oracle(shape: tuple[int, int], dtype: str) -> None:
    """A sum that depends on the order, a row of zeros or of subnormals, a tail past a block."""
    A = gaussian(shape, dtype, 16)
    A[0] = 0.0
    if A.dtype != torch.float16 and shape[0] > 2:
        A[1] *= 1e-42
        A[2] *= 1e30
    found = WIDE.row_l1(WIDE.matrix(A))
    expected = rows.row_l1(np.abs(oracle_array(A).astype(np.float32)))
    assert_same_bits(found, expected)


@pytest.mark.filterwarnings("ignore:.*encountered.*:RuntimeWarning")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_quotients_at_the_ends_of_the_range(dtype: str) -> None:
    """A quotient that overflows before it must, or a subnormal rounded twice."""
    powers = np.ldexp(1.0 + np.arange(8) / 8, np.arange(-149, 128)[:, None])
    A = tensor_of(powers, dtype)
    # The row vector levels the rows, so that each has a fair chance.
    row = np.minimum(np.ldexp(1.0, 126 - np.arange(277)), 2.0**127).astype(np.float32)
    scoring = Scoring(row=GPU.vector(row))
    law = oracle.Scale(2.0**21, scale=2.0**22)
    found, _ = drawn(WIDE, A, LawTable(table(law), Shape.L1, True), Draw(seed=6), scoring)
    s = oracle_score(A, scoring, None)
    expected = oracle_sample(A, s, Shape.L1, law, rescale=True, seed=6, stream=0)
    assert_same_bits(found, expected)
    assert np.isinf(expected).any()
    # Rows of 2^-133 to 2^-129, subnormal in both dtypes.
    assert (np.abs(expected[16:21]) > 0).any()


def test_input_that_is_not_contiguous() -> None:
    """A transposed or sliced tensor read as if it were row-major."""
    A = gaussian((24, 16), "float32", 17)
    law = LawTable(table(LAWS[Shape.L1]), Shape.L1, True)
    for view in (A.T, A[::2, 3:], A.reshape(4, 6, 4, 4)):
        expected, _ = drawn(WIDE, view.contiguous().clone(), law, Draw(seed=1))
        found, _ = drawn(WIDE, view, law, Draw(seed=1))
        assert_same_bits(found, expected)


@pytest.mark.skipif(DEVICE == "cuda", reason="the stand-in for a CuPy array lies on the CPU")
def test_cupy_arrays_go_by_dlpack(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CuPy array that is copied, so that the result is written elsewhere."""

    class Array(np.ndarray):
        device = nullcontext()  # as CuPy's, which makes the device the current one

    Array.__module__ = "cupy"
    stand_in = SimpleNamespace(empty=lambda shape, dtype: np.empty(shape, dtype).view(Array))
    monkeypatch.setitem(sys.modules, "cupy", stand_in)
    values = oracle_array(gaussian((3, 40), "float32", 18))
    A = values.view(Array)
    out = GPU.empty_like(A)
    assert isinstance(out, Array)
    matrices: list[Matrix] = [WIDE.matrix(A), WIDE.matrix(out)]
    law = LawTable(table(LAWS[Shape.L1]), Shape.L1, True)
    WIDE.sample(matrices[0], Scoring(), law, Draw(), matrices[1])
    expected, _ = drawn(WIDE, torch.tensor(values), law, Draw())
    assert_same_bits(np.asarray(out), expected)
    assert GPU.vector(A).data_ptr() == A.ctypes.data
