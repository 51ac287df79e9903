"""The oracle itself, against independent evaluations: it is what every kernel is measured by."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spectral_kernels.reference import oracle, stream
from spectral_kernels.reference.laws import Base, Shape

from tests.support.cases import mixed_values


def test_round_bfloat16_is_torchs() -> None:
    """Truncation, or ties away from zero, in place of ties to even; carries lost at 2^k."""
    patterns = np.arange(0, 1 << 32, 40_503, dtype=np.uint64).astype(np.uint32)
    ties = (np.arange(0, 1 << 16, dtype=np.uint32) << 16) + np.uint32(0x8000)
    values = np.concatenate([patterns, ties, ties - 1, ties + 1]).view(np.float32)
    values = values[np.isfinite(values)]
    expected = torch.from_numpy(values).bfloat16().float().numpy()
    np.testing.assert_array_equal(
        oracle.round_bfloat16(values).view(np.uint32), expected.view(np.uint32)
    )


def test_score_by_hand() -> None:
    """Bases or vectors mixed up, or a zero entry that scores under a spectral base."""
    A = np.array([[1.0, -2.0, 0.0], [-4.0, 0.5, 3.0]], np.float32)
    B = np.array([[2.0, 3.0, 5.0], [-1.0, -1.0, 0.0]], np.float32)
    row = np.array([1.0, 10.0], np.float32)
    column = np.array([1.0, 2.0, 0.0], np.float32)
    by_base = {
        Base.MAGNITUDE: [[1, 2, 0], [4, 0.5, 3]],
        Base.PRINCIPAL: [[2, 3, 0], [1, 1, 0]],
        Base.ALIGNED: [[2, 0, 0], [4, 0, 0]],
        Base.MIXTURE: np.sqrt([[36 + 1, 81 + 4, 0], [9 + 16, 9 + 0.25, 0 + 9]]),
    }
    for base, expected in by_base.items():
        got = oracle.score(A, base, B, (3.0, 1.0))
        np.testing.assert_allclose(got, expected, rtol=1e-6)
        weighted = oracle.score(A, base, B, (3.0, 1.0), row, column)
        np.testing.assert_array_equal(weighted, (got * column) * row[:, None])


def test_low_rank_by_hand() -> None:
    """A sum over the rank in another order, or in more than float32."""
    left = np.array([[1.0, 2.0**-24, 2.0**-24], [2.0**-24, 2.0**-24, 1.0]], np.float32)
    right = np.array([[1.0, 0.5], [1.0, 0.5], [1.0, -0.5]], np.float32)
    got = oracle.low_rank(left, right)
    # 1 + 2^-24 rounds back to 1, twice, and 1/2 + 2^-25 to 1/2; from the small end nothing is lost.
    expected = np.array([[1.0, 0.5 - 2.0**-25], [1.0 + 2.0**-23, -0.5 + 2.0**-24]], np.float32)
    np.testing.assert_array_equal(got, expected)
    assert oracle.low_rank(np.ones((2, 0), np.float32), np.ones((0, 3), np.float32)).shape == (2, 3)


def test_a_score_is_never_minus_zero() -> None:
    """-0.0, whose bit pattern is over every finite score's, from an aligned product of -0.0."""
    A = np.array([[1.0, -1.0, 1e-30, -0.0]], np.float32)
    B = np.array([[-0.0, 0.0, -1e-30, 1.0]], np.float32)
    for base in Base:
        s = oracle.score(A, base, B, (1.0, 1.0))
        assert not np.signbit(s).any(), base


@settings(max_examples=25)
@given(st.integers(1, 12), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_histogram_counts_patterns(m: int, n: int, seed: int) -> None:
    """A bin off by one, zeros counted, or low bits summed into the wrong bin."""
    s = np.abs(mixed_values((m, n), seed)).astype(np.float32)
    count, low = oracle.histogram(s)
    patterns = [int(p) for p in s.view(np.uint32).ravel() if p]
    for b in {p >> 18 for p in patterns}:
        inside = [p & (2**18 - 1) for p in patterns if p >> 18 == b]
        assert count[b] == len(inside)
        assert low[b] == sum(inside)
        values, multiplicity = oracle.refine(s, b)
        assert np.repeat(values, multiplicity).tolist() == sorted(inside)
    assert count.sum() == len(patterns)


def test_histogram_shows_what_is_not_finite() -> None:
    """Infinities or NaN that fall among the finite bins, where nobody looks for them."""
    from spectral_kernels.reference import budget  # noqa: PLC0415

    s = np.array([[np.inf, np.nan, np.finfo(np.float32).max, 1.0]], np.float32)
    count, _ = oracle.histogram(s)
    assert count[budget.FINITE_BINS :].sum() == 2
    assert count[: budget.FINITE_BINS].sum() == 2


@pytest.mark.parametrize("shape", list(Shape))
def test_probabilities_by_hand(shape: Shape) -> None:
    """A law's formula wrong, a cap missing, or t rounded in place of cut."""
    s = np.array([[0.0, 0.75, 1.5, 3.0, 6.0, 400.0]], np.float32)
    law = oracle.Scale(C=1000.0, alpha=0.5, beta=0.25, scale=0.5)
    x = [v * 0.5 for v in s[0].tolist()]
    g = {
        Shape.L1: x,
        Shape.L2: [v * v for v in x],
        Shape.HYBRID: [0.5 * v + 0.25 * v * v for v in x],
        Shape.MAXIMUM: [max(v, 0.25 * v * v) for v in x],
        Shape.TRIMMED: [v * v if v >= 0.5 else 0.0 for v in x],
    }[shape]
    expected = [min(math.floor(1000.0 * v), stream.UNIT) for v in g]
    assert oracle.probabilities(s, shape, law)[0].tolist() == expected
    capped = oracle.Scale(C=3e38, alpha=0.5, beta=0.25, scale=0.5)
    assert oracle.probabilities(s, shape, capped)[0, -1] == stream.UNIT


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_sample_is_the_contract(dtype: str) -> None:
    """u <= t for u < t, p before the floor in place of t / 2^24, or a product with 1 / p."""
    A = mixed_values((40, 50), 3).astype(dtype)
    rng = np.random.default_rng(1)
    u = stream.draws(A.shape, 11, 12, row_offset=3, column_offset=5)
    # Draws that hit t exactly are one in 2^24 by chance: here every tenth entry is one.
    t = np.where(rng.random(A.shape) < 0.1, u, rng.integers(1, stream.UNIT, A.shape))
    t = t.astype(np.float32)
    place = {"seed": 11, "stream": 12, "row_offset": 3, "column_offset": 5}
    got = oracle.sample(A, t, rescale=True, **place)  # type: ignore[arg-type]
    kept = oracle.sample(A, t, rescale=False, **place)  # type: ignore[arg-type]
    wide = np.float64 if dtype == "float64" else np.float32
    for i, j in np.ndindex(A.shape):
        keep = int(u[i, j]) < int(t[i, j])
        assert kept[i, j] == (A[i, j] if keep else 0)
        p = wide(int(t[i, j]) / 2**24)
        assert got[i, j] == (A.dtype.type(wide(A[i, j]) / p) if keep else 0)


def test_threshold_mask_prefers_the_earlier_index() -> None:
    """Ties broken by an unstable sort."""
    s = np.array([[1, 2, 2], [2, 0, 2]], np.float32)
    expected = {1: [1], 2: [1, 2], 3: [1, 2, 3], 4: [1, 2, 3, 5], 5: [0, 1, 2, 3, 5]}
    for budget, kept in expected.items():
        assert np.flatnonzero(oracle.threshold_mask(s, budget)).tolist() == kept


@pytest.mark.parametrize("budget", [0, 1, 5, 9, 17, 24])
def test_keep_scores_is_the_threshold_mask(budget: int) -> None:
    """The two forms of one selection, by rank and by value with a tie stop, drifting apart."""
    rng = np.random.default_rng(budget)
    A = rng.integers(-3, 4, (4, 6)).astype(np.float32)
    s = np.abs(A)
    order = np.sort(s.ravel())[::-1]
    value = np.float32(order[budget - 1]) if budget else np.float32(np.inf)
    wanted = budget - int((s > value).sum())
    ties = np.flatnonzero(s.ravel() == value)
    stop = int(ties[wanted - 1]) + 1 if wanted else 0
    expected = np.where(oracle.threshold_mask(s, budget), A, np.float32(0))
    np.testing.assert_array_equal(oracle.keep_scores(s, A, value, stop), expected)
