"""Budgets of scores that lie many orders of magnitude apart: reached, or said to be missed."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from spectral_kernels import LAW_NAMES, sparsify
from spectral_kernels.reference import oracle
from spectral_kernels.reference.laws import named_law

from tests.support.cases import GROUPS, as_numpy, case

Matrix = NDArray[np.float64]
SHAPE = (24, 64)
DRAWING = [law for law in LAW_NAMES if law != "threshold"]


def with_outlier() -> Matrix:
    A = np.random.default_rng(0).standard_normal(SHAPE)
    A[3, 5] = 1e26
    return A


def seventy_decades() -> Matrix:
    rng = np.random.default_rng(1)
    return 10.0 ** rng.uniform(-35.0, 35.0, SHAPE) * rng.choice([-1.0, 1.0], SHAPE)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("law", DRAWING)
@pytest.mark.parametrize("values", [with_outlier, seventy_decades])
def test_budgets_are_reached(
    values: Callable[[], Matrix], law: str, dtype: str, group: str
) -> None:
    """Half is asked for: "row-l1" kept 64 of 1,536 beside one outlier of 1e26, and "l2", "row-l1"
    and "trimmed-l2" fell short over 70 orders of magnitude, since what matters became 0 in float32.
    """
    size = SHAPE[0] * SHAPE[1]
    found = sparsify(case(values(), dtype).array, sparsity=0.5, law=law, group=group, seed=3)
    assert found.asked == size // 2
    # Six standard deviations of 768 draws of probability 1/2 each, which vary most.
    assert abs(found.nnz - size // 2) <= 6 * (size / 4) ** 0.5
    assert not found.missed


@pytest.mark.parametrize("law", ["l1", "l2", "trimmed-l2"])
@pytest.mark.parametrize("values", [with_outlier, seventy_decades])
def test_reached_as_the_oracle_does(values: Callable[[], Matrix], law: str) -> None:
    """A kernel that makes NaN of a score that its scale lifts to infinity."""
    A = values().astype(np.float32)
    s = oracle.score(A)
    solved = oracle.solve(s, named_law(law).shape, 0.0, A.size // 2)
    t = oracle.probabilities(s, named_law(law).shape, solved)
    expected = oracle.sample(A, t, rescale=True, seed=3, stream=0)
    found = sparsify(A, sparsity=0.5, law=law, rescale=True, seed=3)
    np.testing.assert_array_equal(as_numpy(found.weight), expected)
    assert np.isfinite(expected).all()


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("law", DRAWING)
def test_a_missed_budget_is_said(law: str, group: str) -> None:
    """Entries over 300 orders of magnitude, of which float32 scores know a third: fewer than asked
    are kept, without a word."""
    A = 10.0 ** np.random.default_rng(2).uniform(-300.0, 0.0, SHAPE)
    found = sparsify(A, sparsity=0.5, law=law, group=group)
    assert found.nnz < 0.4 * A.size
    assert found.missed


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_a_budget_over_the_nonzeros_is_not_missed(dtype: str, group: str) -> None:
    """A warning where a matrix has fewer entries that are not 0 than the budget: all are kept."""
    rng = np.random.default_rng(4)
    A = np.where(rng.random(SHAPE) < 0.2, rng.uniform(1.0, 2.0, SHAPE), -0.0)
    column = np.where(rng.random(SHAPE[1]) < 0.5, 1.0, 0.0).astype(np.float32)
    row = np.where(rng.random(SHAPE[0]) < 0.5, 1.0, 0.0).astype(np.float32)
    array = case(A, dtype).array
    for vectors in ({}, {"column": column}, {"row": row, "column": column}):
        found = sparsify(array, sparsity=0.5, law="row-l1", group=group, **vectors)
        assert found.nnz < found.asked
        assert not found.missed


def test_a_low_rank_that_is_mostly_zero_is_not_missed() -> None:
    """A warning under "aligned", which values entries at 0 where the low rank disagrees in sign."""
    A = np.random.default_rng(5).standard_normal(SHAPE).astype(np.float32)
    factors = (np.ones((SHAPE[0], 1), np.float32), np.ones((1, SHAPE[1]), np.float32))
    for group in GROUPS:
        found = sparsify(A, sparsity=0.1, law="l1", score="aligned", factors=factors, group=group)
        assert found.nnz < 0.8 * found.asked
        assert not found.missed


def test_asked_of_patterns() -> None:
    """The budget of blocks counted in blocks, or by the matrix where rows have their own."""
    A = np.random.default_rng(6).standard_normal((32, 64)).astype(np.float32)
    assert sparsify(A, pattern="2:4").asked == A.size // 2
    for group in GROUPS:
        found = sparsify(A, pattern="4x8", sparsity=0.75, group=group)
        assert found.asked == found.nnz == A.size // 4
