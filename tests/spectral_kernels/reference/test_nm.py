"""N of every M and block patterns: the oracle's own promises, and the CPU kernels bit for bit."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spectral_kernels import sparsify
from spectral_kernels.reference import nm, oracle, patterns, stream
from spectral_kernels.reference.laws import BASES, Shape
from spectral_kernels.reference.stream import UNIT
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from tests.support.cases import DTYPES, Case, bits, case, integer_factors, mixed_values, oracle_bits

SCORES = ("magnitude", "principal", "aligned", "mixture")
SHAPES = {"l1": Shape.L1, "quantised": Shape.L1, "l2": Shape.L2}


def expected_nm(
    one: Case, keep: int, of: int, s: Any, law: str = "threshold", *, rescale: bool = False,
    seed: int = 0, tensor: int = 0, row_offset: int = 0, column_offset: int = 0,
) -> Any:  # fmt: skip
    """What `sparsify` must return, by the oracle's functions alone."""
    A = one.matrix
    if law == "threshold":
        return np.where(nm.largest(s, keep, of), A, np.zeros((), A.dtype))
    t = nm.inclusion(s, SHAPES[law], keep, of)
    words = stream.words(A.shape, seed, tensor, row_offset=row_offset, column_offset=column_offset)
    kept = nm.drawn(t, words, of)
    wide = np.dtype(np.float64 if A.dtype == np.float64 else np.float32)
    values = A.astype(wide)
    if rescale:
        values = values / (np.maximum(t, 1).astype(wide) / wide.type(UNIT))
    return np.where(kept, values, wide.type(0)).astype(A.dtype)


def agree(one: Case, expected: Any, **options: Any) -> None:
    """`sparsify` of the array is that matrix, and counts its nonzeros."""
    assert np.isfinite(expected).all(), "the case must not overflow, or it tests a refusal"
    got = sparsify(one.array, **options)
    np.testing.assert_array_equal(bits(got.weight), oracle_bits(expected, one.dtype))
    assert got.nnz == np.count_nonzero(expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("keep", "of"), [(2, 4), (4, 8), (1, 3), (5, 16), (63, 64)])
def test_cpu_kernels_agree_with_the_oracle(keep: int, of: int, dtype: str) -> None:
    """A kernel that ranks, sums, caps, lays out or draws otherwise than the oracle."""
    one = case(mixed_values((37, of * (-(-1100 // of))), 1), dtype)  # more than a block of a row
    s = oracle.score(one.matrix)
    name = f"{keep}:{of}"
    agree(one, expected_nm(one, keep, of, s), pattern=name)
    for law, rescale in (("l1", False), ("l1", True), ("l2", True), ("quantised", False)):
        at = {"row_offset": 2**32 - 5, "column_offset": 3 * of}
        expected = expected_nm(
            one, keep, of, s, law, rescale=rescale, seed=2**64 - 1, tensor=9, **at
        )
        agree(one, expected, pattern=name, law=law, rescale=rescale, seed=2**64 - 1, stream=9, **at)


@pytest.mark.parametrize("law", ["threshold", "l1", "l2"])
@pytest.mark.parametrize("score", SCORES)
def test_every_score_and_vector(score: str, law: str) -> None:
    """A pattern that forgets the low rank, the mixture, or a row or column vector."""
    m, n = 17, 24
    one = case(mixed_values((m, n), 3), "float32")
    rng = np.random.default_rng(4)
    row, column = (rng.uniform(0.5, 2.0, size).astype(np.float32) for size in (m, n))
    factors = None if score == "magnitude" else integer_factors(m, n)
    B = None if factors is None else oracle.low_rank(*factors)
    s = oracle.score(one.matrix, BASES[score], B, (0.001, 0.3), row, column)  # type: ignore[index]
    agree(
        one, expected_nm(one, 2, 4, s, law, seed=1), pattern="2:4", law=law, score=score,
        factors=factors, mixture=(0.001, 0.3), row=row, column=column, seed=1,
    )  # fmt: skip


def test_largest_is_the_best_set_of_every_group() -> None:
    """A rank that miscounts, or breaks ties by the later column."""
    s = np.random.default_rng(0).integers(0, 4, (50, 20)).astype(np.float32)
    for keep, of in ((2, 4), (3, 5), (1, 2)):
        kept = nm.largest(s, keep, of).reshape(-1, of)
        for group, mask in zip(s.reshape(-1, of), kept, strict=True):
            # Combinations come in the order of their columns, and max keeps the first of the best.
            best = max(
                combinations(range(of), keep),
                key=lambda chosen, group=group: sorted(group[[*chosen]], reverse=True),
            )
            assert tuple(np.flatnonzero(mask)) == best


scores = st.floats(0, 2.0**127, width=32, allow_subnormal=True)


@settings(max_examples=200)
@given(st.data())
def test_every_draw_keeps_exactly_n(data: st.DataObject) -> None:
    """Probabilities that do not sum to N: a group would at times keep N - 1 or N + 1."""
    of = data.draw(st.integers(2, 12))
    keep = data.draw(st.integers(1, of - 1))
    s = np.array([data.draw(st.lists(scores, min_size=of, max_size=of))], np.float32)
    shape = data.draw(st.sampled_from([Shape.L1, Shape.L2]))
    t = nm.inclusion(s, shape, keep, of)
    weights = nm.weights(s, shape, of)
    wanted = min(keep, int((weights > 0).sum()))
    assert t.min() >= 0
    assert t.max() <= UNIT
    assert int(t.sum()) == wanted * UNIT
    words = np.random.default_rng(0).integers(0, 2**32, (64, of), np.uint32)
    kept = nm.drawn(np.repeat(t, 64, axis=0), words, of)
    assert (kept.sum(axis=1) == wanted).all()
    assert not kept[:, t[0] == 0].any()


@settings(max_examples=100)
@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=9), st.data())
def test_inclusion_is_capped_proportional_to_size(values: list[float], data: st.DataObject) -> None:
    """A cap that stops early, or a c solved for the wrong sum."""
    keep = data.draw(st.integers(1, len(values) - 1))
    s = np.array([values], np.float32)
    p = nm.inclusion(s, Shape.L1, keep, len(values))[0] / UNIT
    certain = np.zeros(len(values), bool)
    for _ in values:
        c = (keep - certain.sum()) / max(s[0][~certain].sum(dtype=np.float64), 1e-30)
        certain |= c * s[0] >= 1.0
    exact = np.where(certain, 1.0, np.minimum(c * s[0].astype(np.float64), 1.0))
    np.testing.assert_allclose(p, exact, atol=1e-5)


def test_frequencies_are_the_documented_probabilities() -> None:
    """Draws whose inclusion probability is not t / 2^24, or that never keep some pair."""
    draws = 200_000
    for values in ([4.0, 1.0, 0.5, 0.2], [1.0, 1.0, 1.0, 1.0], [3.0, 2.0, 2.0, 1.0]):
        s = np.tile(np.array(values, np.float32), (draws, 1))
        t = nm.inclusion(s, Shape.L1, 2, 4)
        kept = nm.drawn(t, stream.words(s.shape, 7, 8), 4)
        p = t[0] / UNIT
        # Five standard deviations: a significance of 6e-7.
        assert (np.abs(kept.mean(0) - p) <= 5 * np.sqrt(p * (1 - p) / draws) + 1e-12).all()
        if p.max() < 1.0:
            assert (kept.T.astype(np.float64) @ kept > 0).all()


def test_rescaling_is_unbiased() -> None:
    """Rescaled by another probability than that of the draw, the mean would not be A."""
    rows = 1 << 16
    A = np.tile(np.array([3.0, -1.0, 0.5, 2.0], np.float32), (rows, 2))
    mean = sparsify(A, pattern="2:4", law="l1", rescale=True, seed=3).weight.mean(0)
    p = nm.inclusion(np.abs(A[:1, :4]), Shape.L1, 2, 4)[0] / UNIT
    deviation = np.abs(A[0, :4]) * np.sqrt((1 - p) / p / rows)
    assert (np.abs(mean - A[0]) <= 5 * np.tile(deviation, 2) + 1e-6).all()


def test_shards_draw_what_the_whole_draws() -> None:
    """A draw that depends on where the shard lies in memory, or on the number of threads."""
    A = mixed_values((9, 64), 2).astype(np.float32)
    whole = sparsify(A, pattern="4:8", law="l2", rescale=True, seed=5, stream=6).weight
    part = sparsify(
        A[3:, 24:], pattern="4:8", law="l2", rescale=True, seed=5, stream=6, row_offset=3,
        column_offset=24,
    ).weight  # fmt: skip
    np.testing.assert_array_equal(whole[3:, 24:], part)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", [(1, 4), (4, 1), (6, 16), (36, 1040), (2, 5)])
def test_blocks_agree_with_the_oracle(block: tuple[int, int], dtype: str) -> None:
    """Blocks summed across their edges, over a block of the kernel, or kept in another order."""
    one = case(mixed_values((36, 1040), 1), dtype)
    pattern = patterns.Blocks(*block)
    found = patterns.block_scores(oracle.score(one.matrix), pattern)
    budget = found.size - round(0.6 * found.size)
    mask = oracle.threshold_mask(found, budget).repeat(block[0], 0).repeat(block[1], 1)
    expected = np.where(mask, one.matrix, np.zeros((), one.matrix.dtype))
    agree(one, expected, pattern=str(pattern), sparsity=0.6)


def test_blocks_count_exactly_and_by_row() -> None:
    """Ties, or blocks that score nothing, that make the count inexact."""
    A = np.ones((8, 32), np.float32)
    for group in ("tensor", "row"):
        kept = sparsify(A, pattern="2x4", sparsity=0.75, group=group).weight != 0
        blocks = kept.reshape(4, 2, 8, 4).sum(axis=(1, 3))
        assert set(blocks.ravel().tolist()) == {0, 8}
        assert (blocks > 0).sum() == 8
        if group == "row":
            assert ((blocks > 0).sum(axis=1) == 2).all()
    # Scores of which most are 0: A B < 0 nearly everywhere.
    left, right = np.full((8, 1), -1, np.float32), np.ones((1, 32), np.float32)
    A[0, 0] = -1.0
    kept = sparsify(A, pattern="2x4", sparsity=0.75, score="aligned", factors=(left, right))
    assert kept.nnz == 8 * 8
    assert kept.weight[0, 0] == -1.0


def test_semi_structured_layout_takes_it_as_is() -> None:
    """More than two nonzeros of four, or rows of the wrong length: torch packs no such tensor."""
    for dtype in (torch.float16, torch.bfloat16):
        A = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)).to(dtype)
        A[0, :8] = 0.0
        for options in ({}, {"law": "l1", "rescale": True, "seed": 1}):
            S = sparsify(A, pattern="2:4", **options).weight
            assert S.is_contiguous()
            assert S.dtype == dtype
            for kind in (SparseSemiStructuredTensorCUTLASS, SparseSemiStructuredTensorCUSPARSELT):
                least = kind._DTYPE_SHAPE_CONSTRAINTS[dtype]
                assert S.shape[0] % least.sparse_min_rows == 0
                assert S.shape[1] % least.sparse_min_cols == 0
            packed, meta = sparse_semi_structured_from_dense_cutlass(S)
            assert packed.numel() == S.numel() // 2
            restored = sparse_semi_structured_to_dense_cutlass(packed, meta)
            torch.testing.assert_close(restored, S, rtol=0, atol=0)


@pytest.mark.gpu
def test_semi_structured_product_on_the_device() -> None:
    """A pattern that torch packs, but multiplies as another matrix."""
    A = torch.randn(128, 256, device="cuda", dtype=torch.float16)
    S = sparsify(A, pattern="2:4").weight
    with pytest.warns(UserWarning, match="prototype"):
        packed = torch.sparse.to_sparse_semi_structured(S)
    x = torch.randn(256, 64, device="cuda", dtype=torch.float16)
    torch.testing.assert_close(packed @ x, S @ x, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": "2:4", "sparsity": 0.9}, "sparsity: pattern '2:4' has 0.5 of zeros"),
        ({"pattern": "3:5"}, "pattern: expected columns in multiples of 5"),
        ({"pattern": "4:4"}, "pattern: expected N of M with 0 < N < M"),
        ({"pattern": "0:4"}, "pattern: expected N of M"),
        ({"pattern": "64:128"}, "pattern: expected N of M"),
        ({"pattern": "2-4"}, "pattern: expected 'N:M' or 'RxC'"),
        ({"pattern": "0x4", "sparsity": 0.5}, "pattern: expected blocks of at least"),
        ({"pattern": "3x4", "sparsity": 0.5}, "pattern: expected rows in multiples of 3"),
        ({"pattern": "4x3", "sparsity": 0.5}, "pattern: expected columns in multiples of 3"),
        ({"pattern": "4x4", "sparsity": 0.5, "law": "l1"}, "pattern: blocks are kept by law"),
        ({"pattern": "2:4", "law": "hybrid"}, "pattern: N of M is drawn by law"),
        ({"pattern": "2:4", "law": "l1", "column_offset": 2}, "column_offset: expected a multiple"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    """Bad input that goes through, or an error that does not say what was expected."""
    with pytest.raises(ValueError, match=message):
        sparsify(np.ones((8, 16), np.float32), **options)


def test_wrong_types_and_broken_weights() -> None:
    """A pattern that is no string, a sparsity left out, NaN that a pattern hides."""
    A = np.ones((8, 16), np.float32)
    with pytest.raises(TypeError, match="pattern: expected a string"):
        sparsify(A, pattern=(2, 4))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="sparsity: expected a number"):
        sparsify(A, pattern="4x4")
    for value in (np.nan, np.inf):
        A[3, 5] = value
        for options in ({"pattern": "2:4"}, {"pattern": "2:4", "law": "l1"},
                        {"pattern": "4x4", "sparsity": 0.5}):  # fmt: skip
            with pytest.raises(ValueError, match="weight: expected finite entries"):
                sparsify(A, **options)


def test_rescaling_past_the_dtype_is_refused() -> None:
    """An infinity in the result where A / p does not fit float16."""
    A = np.zeros((4096, 4), np.float16)
    A[:] = [60000.0, 60000.0, 60000.0, 30000.0]
    with pytest.raises(ValueError, match="rescale: some A / p overflow float16"):
        sparsify(A, pattern="2:4", law="l1", rescale=True)
