"""The Triton kernels of N of every M against the oracle, bit for bit."""

import numpy as np
import pytest
import torch
from spectral_kernels import sparsify
from spectral_kernels.backends.gpu.backend import GPU, GPUBackend
from spectral_kernels.backends.protocol import Draw, Scoring
from spectral_kernels.reference import nm, oracle, patterns
from spectral_kernels.reference.laws import Base, Shape
from spectral_kernels.reference.stream import words

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TWO_OF_FOUR, FOUR_OF_EIGHT = patterns.NM(2, 4), patterns.NM(4, 8)


def with_ties(shape: tuple[int, int], dtype: str, seed: int = 0) -> torch.Tensor:
    """A matrix with zeros, ties, groups with fewer scores than are kept, and a wide range."""
    rng = np.random.default_rng(seed)
    values = np.round(rng.standard_normal(shape), 1) * np.exp2(rng.integers(-9, 2, shape))
    values[0, :6] = 0.0
    values[-1, -4:] = [0.0, 3.0, 0.0, 0.0]
    return torch.tensor(values, device=DEVICE).to(getattr(torch, dtype))


def on_host(A: torch.Tensor) -> np.ndarray:
    A = A.cpu()
    return (A.float() if A.dtype == torch.bfloat16 else A).numpy()


def assert_same_bits(found: torch.Tensor, expected: np.ndarray) -> None:
    host = on_host(found)
    if found.dtype == torch.bfloat16:
        expected = oracle.round_bfloat16(expected)
    assert host.dtype == expected.dtype
    np.testing.assert_array_equal(
        host.view(f"u{host.itemsize}"), expected.view(f"u{host.itemsize}")
    )


def expected_draw(
    A: torch.Tensor, s: np.ndarray, pattern: patterns.NM, shape: Shape, rescale: bool, draw: Draw
) -> np.ndarray:
    """What the oracle draws."""
    values = on_host(A)
    t = nm.inclusion(s, shape, pattern.keep, pattern.of)
    word = words(
        values.shape, draw.seed, draw.stream, row_offset=draw.row, column_offset=draw.column
    )
    keep = nm.drawn(t, word, pattern.of)
    if rescale:
        wide = values.astype(np.float64 if values.dtype == np.float64 else np.float32)
        p = np.maximum(t, 1).astype(wide.dtype) / wide.dtype.type(2**24)
        values = (wide / p).astype(values.dtype)
    return np.where(keep, values, values.dtype.type(0))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("pattern", [TWO_OF_FOUR, FOUR_OF_EIGHT, patterns.NM(1, 2)], ids=str)
def test_largest(pattern: patterns.NM, dtype: str) -> None:
    """Ties kept by another column, a group cut by the edge of a tile, zeros counted as kept."""
    A = with_ties((5, 136), dtype)
    out = torch.full_like(A, torch.nan)
    found = GPU.keep_largest_of(GPU.matrix(A), Scoring(), pattern, GPU.matrix(out))
    values = on_host(A)
    mask = nm.largest(oracle.score(values), pattern.keep, pattern.of)
    expected = np.where(mask, values, values.dtype.type(0))
    assert_same_bits(out, expected)
    assert found == (np.count_nonzero(expected), 0)


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("shape", [Shape.L1, Shape.L2])
@pytest.mark.parametrize(
    ("pattern", "dtype"),
    [(TWO_OF_FOUR, "float32"), (TWO_OF_FOUR, "bfloat16"), (FOUR_OF_EIGHT, "float16"),
     (FOUR_OF_EIGHT, "float64"), (patterns.NM(1, 2), "float32")],
    ids=str,
)  # fmt: skip
def test_draw(pattern: patterns.NM, dtype: str, shape: Shape, rescale: bool) -> None:
    """A sum in another order, a cap missed, a remainder lost, an order of the wrong bits."""
    A, draw = with_ties((4, 72), dtype, 1), Draw(seed=3, stream=9)
    out = torch.full_like(A, torch.nan)
    found = GPU.sample_of(GPU.matrix(A), Scoring(), pattern, shape, rescale, draw, GPU.matrix(out))
    expected = expected_draw(A, oracle.score(on_host(A)), pattern, shape, rescale, draw)
    assert_same_bits(out, expected)
    assert found == (np.count_nonzero(expected), 0)


@pytest.mark.parametrize(
    ("pattern", "column"), [(TWO_OF_FOUR, 2**33 + 4), (FOUR_OF_EIGHT, 8), (patterns.NM(1, 2), 6)],
    ids=str,
)  # fmt: skip
def test_draw_far_out(pattern: patterns.NM, column: int) -> None:
    """A shard, or a block of it, that draws other entries than the whole matrix."""
    A = with_ties((9, 80), "float32", 2)
    draw = Draw(2**64 - 3, 2**32 - 1, 2**33 + 5, column)
    out = torch.full_like(A, torch.nan)
    backend = GPUBackend(entries=64)
    backend.sample_of(
        backend.matrix(A), Scoring(), pattern, Shape.L1, False, draw, backend.matrix(out)
    )
    expected = expected_draw(A, oracle.score(on_host(A)), pattern, Shape.L1, False, draw)
    assert_same_bits(out, expected)


def test_scores_of_low_rank() -> None:
    """Groups of the entries instead of the scores; vectors left out."""
    A, rng = with_ties((20, 40), "float32", 3), np.random.default_rng(4)
    left, right = rng.integers(-3, 4, (20, 5)), rng.integers(-3, 4, (5, 40)) / 4
    column = rng.uniform(0.5, 2.0, 40).astype(np.float32)
    scoring = Scoring(
        Base.PRINCIPAL, GPU.vector(left), GPU.vector(right), column=GPU.vector(column)
    )
    B = (left @ right).astype(np.float32)
    s = oracle.score(on_host(A), Base.PRINCIPAL, B, column=column)
    backend, out = GPUBackend(rows=16, columns=32), torch.empty_like(A)
    backend.keep_largest_of(backend.matrix(A), scoring, TWO_OF_FOUR, backend.matrix(out))
    assert_same_bits(out, np.where(nm.largest(s, 2, 4), on_host(A), np.float32(0)))


def test_scores_that_are_not_finite_are_counted() -> None:
    """An infinity or a NaN that a group hides."""
    A = with_ties((4, 24), "float32")
    A[1, 3], A[2, 5], A[3, 1] = torch.inf, torch.nan, -torch.inf
    found = GPU.keep_largest_of(
        GPU.matrix(A), Scoring(), TWO_OF_FOUR, GPU.matrix(torch.empty_like(A))
    )
    assert found[1] == 3


def test_groups_of_other_sizes_are_refused() -> None:
    """Groups cut at the next power of two."""
    A = with_ties((4, 24), "float32")
    with pytest.raises(ValueError, match="power of two; got '2:6'"):
        GPU.keep_largest_of(GPU.matrix(A), Scoring(), patterns.NM(2, 6), GPU.matrix(A))


def test_blocks() -> None:
    """Blocks summed in another order, or cut to other entries, than the CPU's."""
    A = with_ties((24, 30), "float32", 5)
    pattern = patterns.Blocks(4, 3)
    scores = GPU.block_scores(GPU.matrix(A), Scoring(), pattern)
    expected = patterns.block_scores(oracle.score(on_host(A)), pattern)
    assert_same_bits(scores, expected)
    out = torch.empty_like(A)
    chosen = torch.where(scores > scores.median(), scores, 0.0)
    nnz = GPU.keep_blocks(GPU.matrix(A), pattern, chosen, GPU.matrix(out))
    whole = np.kron((chosen.cpu().numpy() != 0).astype(np.float32), np.ones((4, 3), np.float32))
    np.testing.assert_array_equal(on_host(out), np.where(whole != 0, on_host(A), 0))
    assert nnz == np.count_nonzero(on_host(out))


@pytest.mark.skipif(DEVICE == "cpu", reason="on the CPU both would be the CPU's kernels")
@pytest.mark.parametrize("pattern", ["2:4", "4:8", "4x4"])
def test_whole(pattern: str) -> None:
    """A pattern that the pipeline does not hand to the device's kernels."""
    A = with_ties((32, 64), "float32", 6)
    found, expected = (sparsify(X, pattern=pattern, sparsity=0.5) for X in (A, A.cpu()))
    assert_same_bits(found.weight, on_host(expected.weight))
