"""The named laws through `sparsify`: formulas, limits, and names that coincide."""

import math
from typing import Any

import numpy as np
import pytest
from spectral_kernels import GROUP_NAMES, LAW_NAMES, SCORE_NAMES, sparsify
from spectral_kernels.reference import oracle, rows
from spectral_kernels.reference.laws import Shape

from tests.support.cases import (
    DTYPES,
    GROUPS,
    LAWS,
    bits,
    capped_scale,
    case,
    mixed_values,
    normal_matrix,
    oracle_sparsify,
)


def test_names() -> None:
    """A law, score or group that these tests do not know."""
    assert set(LAW_NAMES) == set(LAWS)
    assert set(SCORE_NAMES) == {"magnitude", "principal", "aligned", "mixture"}
    assert set(GROUP_NAMES) == set(GROUPS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", GROUPS)
def test_am07_is_l1(dtype: str, group: str) -> None:
    """am07's default constant inert in theory, but not in the code; or a constant that never is."""
    A = case(mixed_values((20, 301), 1), dtype).array
    options: Any = {"sparsity": 0.8, "rescale": True, "group": group, "seed": 3}
    am07, l1 = (sparsify(A, law=law, **options).weight for law in ("am07", "l1"))
    np.testing.assert_array_equal(bits(am07), bits(l1))
    small = sparsify(A, law="am07", law_parameter=1.0, **options).weight
    assert (bits(small) != bits(l1)).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_quantised_is_l1(dtype: str) -> None:
    """A second code path for what is one law."""
    A = case(mixed_values((20, 301), 2), dtype).array
    for rescale in (False, True):
        options: Any = {"sparsity": 0.8, "rescale": rescale, "seed": 3}
        first, second = (sparsify(A, law=law, **options).weight for law in ("quantised", "l1"))
        np.testing.assert_array_equal(bits(first), bits(second))


def test_quantised_survivors_share_one_magnitude() -> None:
    """Values not A / p: Arora-Hazan-Kale make every small survivor sign(A) tau."""
    A = normal_matrix(200, 200)
    out = sparsify(A, sparsity=0.9, law="quantised", rescale=True)
    tau = 1.0 / out.c
    small = (out.weight != 0) & (np.abs(A) < 0.999 * tau)
    assert small.sum() > 1000
    np.testing.assert_array_equal(np.sign(out.weight[small]), np.sign(A[small]))
    # t is cut to an integer: A / p exceeds tau by a part in t at most.
    t = np.floor(np.abs(A[small].astype(np.float64)) * out.c * 2**24 * (1 - 1e-6))
    excess = np.abs(out.weight[small]) / tau - 1.0
    assert (excess > -1e-6).all()
    assert (excess < 1.0 / t + 1e-6).all()


@pytest.mark.parametrize("law", ["l1", "l2", "trimmed-l2"])
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e-9])
def test_c_is_the_laws_constant(law: str, scale: float) -> None:
    """The c reported is not that of p = min(1, c g(s)), in the units of the scores."""
    A = normal_matrix(100, 200) * np.float32(scale)
    out = sparsify(A, sparsity=0.9, law=law)
    g = np.abs(A.astype(np.float64)) ** (1 if law == "l1" else 2)
    if law == "trimmed-l2":
        solved = oracle.solve(np.abs(A), Shape.TRIMMED, 0.0, 2000)
        g[np.abs(A) * np.float32(solved.scale) < np.float32(solved.alpha)] = 0.0
    assert np.minimum(1.0, out.c * g).sum() == pytest.approx(2000, rel=2e-3)


@pytest.mark.parametrize("law", ["row-l1", "bernstein"])
@pytest.mark.parametrize("budget", [50, 2_000, 15_000])
def test_row_laws_formula(law: str, budget: int) -> None:
    """Row weights that are not the papers', or that go astray on the way to the kernels."""
    rng = np.random.default_rng(4)
    A = (rng.standard_normal((100, 200)) * np.exp(rng.standard_normal((100, 1)))).astype(np.float32)
    A[5] = 0.0
    m, n = A.shape
    wide = np.abs(A.astype(np.float64))
    l1 = wide.sum(axis=1)
    z = l1 / l1.sum()
    if law == "row-l1":
        rho = z * z
    else:
        log_term = math.log((m + n) / 0.1)
        alpha, beta = math.sqrt(log_term / budget), log_term / (3 * budget)
        zeta = 1.0
        for _ in range(2000):  # the fixed point of Achlioptas, Karnin, Liberty: zeta sum rho
            half = alpha * z / (2 * zeta)
            rho = (half + np.sqrt(half**2 + beta * z / zeta)) ** 2
            zeta *= rho.sum() ** 0.5
        assert rho.sum() == pytest.approx(1.0, rel=1e-9)
    per_row = np.divide(rho, l1, out=np.zeros(m), where=l1 > 0)
    g = wide * per_row[:, None]
    expected = np.minimum(1.0, capped_scale(g / g.max(), budget) * g / g.max())

    weights = (
        rows.row_l1_weights(rows.row_l1(np.abs(A)))
        if law == "row-l1"
        else rows.bernstein_row_weights(rows.row_l1(np.abs(A)), n, budget)
    )
    s = oracle.score(A, row=weights)
    p = oracle.probabilities(s, Shape.L1, oracle.solve(s, Shape.L1, 0.0, budget)) / 2**24
    np.testing.assert_allclose(p, expected, rtol=3e-3, atol=3 / 2**24)
    # And `sparsify` draws with these and no others.
    drawn = sparsify(A, sparsity=1 - budget / A.size, law=law, seed=9)
    same = oracle_sparsify(A, sparsity=1 - budget / A.size, law=law, seed=9)
    np.testing.assert_array_equal(bits(drawn.weight), bits(same))


def test_bernstein_limits() -> None:
    """rho of the wrong branch: few samples give l1, many give row-l1."""
    l1 = np.abs(normal_matrix(50, 1)[:, 0]) + np.float32(0.1)
    few = rows.bernstein_row_weights(l1, 300, 1e-9)  # type: ignore[arg-type]
    np.testing.assert_allclose(few, 1.0, rtol=1e-3)
    many = rows.bernstein_row_weights(l1, 300, 10**15)
    np.testing.assert_allclose(many, l1 / l1.max(), rtol=1e-3)


@pytest.mark.parametrize("law", ["row-l1", "bernstein"])
@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e37])
def test_row_laws_at_the_ends_of_the_range(law: str, scale: float) -> None:
    """A row's l1 norm, or a product with it, that leaves float32 where every entry is inside."""
    A = np.clip(normal_matrix(100, 300), -9, 9) * np.float32(scale)
    out = sparsify(A, sparsity=0.9, law=law)
    assert abs(out.nnz - 3000) < 6 * math.sqrt(3000)


@pytest.mark.parametrize("group", GROUPS)
def test_hybrid_ends(group: str) -> None:
    """alpha the wrong way round: 1 is l1, 0 is l2."""
    A = normal_matrix()
    for alpha, law in ((1.0, "l1"), (0, "l2")):
        options: Any = {"sparsity": 0.9, "rescale": True, "group": group}
        hybrid = sparsify(A, law="hybrid", law_parameter=alpha, **options)
        np.testing.assert_array_equal(
            bits(hybrid.weight), bits(sparsify(A, law=law, **options).weight)
        )
