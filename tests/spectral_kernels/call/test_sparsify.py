"""`sparsify` as its users see it: exact counts and properties."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spectral_kernels import entries_to_keep, histogram, sparsify
from spectral_kernels.reference import oracle

from tests.support.cases import (
    DTYPES,
    GROUPS,
    LAWS,
    as_numpy,
    bits,
    case,
    largest,
    mixed_values,
    normal_matrix,
)


def tied_families() -> dict[str, Any]:
    rng = np.random.default_rng(6)
    shape = (57, 131)
    return {
        "constant": np.full(shape, -0.5),
        "bfloat16": oracle.round_bfloat16(rng.standard_normal(shape)),
        "integers": rng.integers(-3, 4, shape).astype(float),
        "mostly zeros": np.where(rng.random(shape) < 0.97, 0.0, rng.standard_normal(shape)),
        "zero": np.zeros(shape),
        "one bin": 1.0 + rng.integers(0, 3, shape) * 2.0**-10,
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", tied_families())
def test_exact_count_with_ties(name: str, dtype: str) -> None:
    """`<= threshold`, which prunes 90.2 % where 90 % was asked; ties not by index."""
    one = case(tied_families()[name], dtype)
    A = one.matrix
    for sparsity in (0.0, 0.017, 0.25, 0.5, 0.9, 0.99, 0.9999):
        budget = A.size - round(sparsity * A.size)
        out = sparsify(one.array, sparsity=sparsity)
        mask = largest(A, budget)
        expected = np.where(mask, A, np.zeros((), A.dtype))
        np.testing.assert_array_equal(
            np.asarray(case(expected, dtype).matrix),
            np.asarray(case(as_numpy(out.weight), dtype).matrix),
        )
        assert out.nnz == min(budget, np.count_nonzero(A))
    for sparsity in (0.0, 0.3, 0.9, 0.99):
        budget = A.shape[1] - round(sparsity * A.shape[1])
        out = sparsify(one.array, sparsity=sparsity, group="row")
        expected = np.stack([np.where(largest(a, budget), a, np.zeros((), a.dtype)) for a in A])
        np.testing.assert_array_equal(as_numpy(out.weight), expected)
        assert out.nnz == np.count_nonzero(expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", GROUPS)
def test_nothing_to_remove_is_the_identity(dtype: str, group: str) -> None:
    """Sparsity 0 that drops, rescales, or turns -0.0 into 0.0."""
    one = case(mixed_values((37, 203), 7), dtype)
    assert np.signbit(one.matrix[one.matrix == 0]).any()
    for law in LAWS:
        out = sparsify(one.array, sparsity=0.0, law=law, rescale=True, group=group)
        np.testing.assert_array_equal(bits(out.weight), bits(one.array))
        assert out.nnz == np.count_nonzero(one.matrix)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", GROUPS)
def test_nothing_to_keep_is_zero(dtype: str, group: str) -> None:
    """A budget of 0 that reads before the start of an empty list of ties."""
    for n in (1, 2, 5, 8, 40):
        one = case(mixed_values((40, n), 8), dtype)
        for law in LAWS:
            for _ in range(3):
                out = sparsify(one.array, sparsity=0.9999, law=law, rescale=True, group=group)
                assert not as_numpy(out.weight).any(), (n, law)
                assert out.nnz == 0


@pytest.mark.parametrize("law", LAWS)
def test_nnz_is_counted_in_the_result(law: str) -> None:
    """float64 entries that vanish as float32 scores, kept but not counted."""
    A = np.array([[1.0, 1e-60, -1e-50, 0.0], [2.0, 3.0, 1e-46, -0.0]])
    for sparsity in (0.0, 0.125, 0.25, 0.5):
        for group in GROUPS:
            out = sparsify(A, sparsity=sparsity, law=law, group=group)
            assert out.nnz == np.count_nonzero(out.weight), (sparsity, group)


def test_entries_to_keep() -> None:
    """A budget computed in float32, or rounded the other way at a tie."""
    assert entries_to_keep(2**33 + 1, 0.0) == 2**33 + 1
    assert entries_to_keep(2**33, 0.75) == 2**31
    assert [entries_to_keep(size, 0.5) for size in (1, 2, 3, 5)] == [1, 1, 1, 3]
    assert entries_to_keep(10**6, np.float32(0.5)) == 500_000
    assert entries_to_keep(10, 1 - 2**-53) == 0
    assert entries_to_keep(7, np.int64(0)) == 7


sizes = st.tuples(st.integers(1, 40), st.integers(1, 60))
seeds = st.integers(0, 2**64 - 1)
sparsities = st.floats(0.0, 0.999)
laws = st.sampled_from(list(LAWS))
groups = st.sampled_from(GROUPS)


@settings(max_examples=50)
@given(sizes, seeds, sparsities, laws, groups, st.booleans(), st.sampled_from(DTYPES))
def test_support_and_values(
    size: tuple[int, int], seed: int, sparsity: float, law: str, group: str, rescale: bool,
    dtype: str,
) -> None:  # fmt: skip
    """Something where there was nothing, a sign lost, or a survivor smaller than it was."""
    one = case(mixed_values(size, seed % 1000), dtype)
    out = sparsify(one.array, sparsity=sparsity, law=law, group=group, rescale=rescale, seed=seed)
    before, after = one.matrix, as_numpy(out.weight)
    kept = after != 0
    assert not (kept & (before == 0)).any()
    assert out.nnz == kept.sum()
    if rescale and law != "threshold":
        assert (np.sign(after[kept]) == np.sign(before[kept])).all()
        assert (np.abs(after[kept]) >= np.abs(before[kept])).all()
    else:
        np.testing.assert_array_equal(after[kept], before[kept])
    again = sparsify(one.array, sparsity=sparsity, law=law, group=group, rescale=rescale, seed=seed)
    np.testing.assert_array_equal(bits(again.weight), bits(out.weight))


@settings(max_examples=20)
@given(sizes, seeds, sparsities, groups)
def test_thresholds_are_idempotent(
    size: tuple[int, int], seed: int, sparsity: float, group: str
) -> None:
    """A second pass that removes more, as a threshold on what is left would."""
    A = np.round(mixed_values(size, seed % 1000) * 500).astype(np.float32)
    once = sparsify(A, sparsity=sparsity, group=group)
    twice = sparsify(once.weight, sparsity=sparsity, group=group)
    np.testing.assert_array_equal(bits(twice.weight), bits(once.weight))


@settings(max_examples=20)
@given(
    sizes, seeds, sparsities, laws, groups, st.integers(-60, 60),
    st.sampled_from(["float32", "float64", "bfloat16"]),
)  # fmt: skip
def test_powers_of_two_scale_the_result(
    size: tuple[int, int], seed: int, sparsity: float, law: str, group: str, power: int, dtype: str
) -> None:
    """A constant with units somewhere in the budget: decisions that depend on A's scale."""
    values = mixed_values(size, seed % 1000)
    factor = 2.0**power
    options: Any = {"sparsity": sparsity, "law": law, "group": group, "rescale": True, "seed": seed}
    first = sparsify(case(values, dtype).array, **options)
    second = sparsify(case(values * factor, dtype).array, **options)
    assert first.nnz == second.nnz
    np.testing.assert_array_equal(
        as_numpy(first.weight) * as_numpy(first.weight).dtype.type(factor), as_numpy(second.weight)
    )


@settings(max_examples=20)
@given(sizes, st.integers(0, 1000), sparsities)
def test_transposing_commutes_with_thresholds(
    size: tuple[int, int], seed: int, sparsity: float
) -> None:
    """A threshold that depends on the layout."""
    A = np.random.default_rng(seed).permutation(size[0] * size[1]).reshape(size) - 50.5
    straight = sparsify(A, sparsity=sparsity).weight
    across = sparsify(A.T, sparsity=sparsity).weight
    # +-x tie in pairs here: all but the one pair at the threshold must agree.
    assert np.count_nonzero(straight != across.T) <= 2


@settings(max_examples=15)
@given(sizes, seeds, sparsities)
def test_sign_does_not_matter(size: tuple[int, int], seed: int, sparsity: float) -> None:
    """A score of A in place of |A|."""
    A = mixed_values(size, seed % 1000).astype(np.float32)
    for law in ("threshold", "bernstein"):
        options: Any = {"sparsity": sparsity, "law": law, "rescale": True, "seed": seed}
        plus, minus = sparsify(A, **options).weight, sparsify(-A, **options).weight
        np.testing.assert_array_equal(plus, -minus)


def test_seeds_and_streams_differ() -> None:
    """A seed or stream that is accepted and not used, its upper half included."""
    A = normal_matrix()
    masks = [
        sparsify(A, sparsity=0.5, law="l1", **place).weight != 0
        for place in (
            {}, {"seed": 1}, {"seed": 2**32}, {"stream": 1}, {"stream": 2**31},
            {"row_offset": 1}, {"row_offset": 2**32}, {"column_offset": 4},
        )
    ]  # fmt: skip
    for i in range(len(masks)):
        for j in range(i):
            assert (masks[i] != masks[j]).mean() > 0.2, (i, j)


@settings(max_examples=20)
@given(st.integers(1, 30), st.integers(1, 50), st.integers(0, 1000), st.integers(0, 29))
def test_histograms_merge(m: int, n: int, seed: int, cut: int) -> None:
    """A shard's histogram that is not its share of the whole's."""
    A = mixed_values((m, n), seed).astype(np.float32)
    cut = min(cut, m - 1)
    whole = histogram(A)
    parts = [histogram(part) for part in (A[:cut], A[cut:]) if part.size]
    for k in (0, 1):
        np.testing.assert_array_equal(sum(part[k] for part in parts), whole[k])
    assert whole[0].sum() == np.count_nonzero(A)
