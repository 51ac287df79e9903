"""S + L R of one matrix, against NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spectral_kernels import entries_to_keep

import spectral_engine as se
from spectral_engine.matrix.moments import Moments
from spectral_engine.refitting.damping import damping_level
from spectral_engine.refitting.least_squares import DAMPING
from spectral_engine.sparsifying.low_rank import Root

EXACT = settings(max_examples=15)
REFITS = {
    "least-squares": se.LeastSquares, "alps": se.ALPS, "spectral": se.SpectralRefit,
    "bias-correction": se.BiasCorrection,
}  # fmt: skip
METRICS = st.sampled_from(["outputs", "scaled"])


def matrix(seed: int, m: int, n: int, rank: int = 2) -> np.ndarray:
    """A few strong directions in noise."""
    random = np.random.default_rng(seed)
    strong = random.standard_normal((m, rank)) @ random.standard_normal((rank, n))
    return (strong + random.standard_normal((m, n))).astype(np.float64)


def samples(seed: int, n: int) -> np.ndarray:
    """Correlated inputs with a mean."""
    random = np.random.default_rng(seed + 1000)
    return random.standard_normal((4 * n, n)) @ random.standard_normal((n, n)) + 1.0


def parts(out: se.Sparsified) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    assert out.factors is not None
    left, right = (part.double().numpy() for part in out.factors)
    return np.asarray(out.weight, np.float64), left, right


def root(inputs: np.ndarray) -> np.ndarray:
    """C of the outputs' error, by NumPy."""
    H = inputs.T @ inputs / len(inputs)
    ridge = DAMPING * damping_level(torch.from_numpy(H.diagonal().copy()))
    return np.linalg.cholesky(H + ridge * np.eye(len(H)))


def largest(A: np.ndarray, count: int, scale: np.ndarray | float = 1.0) -> np.ndarray:
    scores = np.abs(A * scale).ravel()
    kept = np.zeros(A.size, bool)
    kept[np.argsort(-scores, kind="stable")[:count]] = True
    return np.where(kept.reshape(A.shape), A, 0.0)


def best(E: np.ndarray, C: np.ndarray, rank: int) -> np.ndarray:
    """The matrix of this rank nearest to E, in the norm of C."""
    U, s, Vh = np.linalg.svd(E @ C, full_matrices=False)
    return (U[:, :rank] * s[:rank]) @ Vh[:rank] @ np.linalg.inv(C)


@EXACT
@given(st.integers(0, 99), st.integers(6, 14), st.integers(6, 14), st.integers(1, 2))
def test_data_free_is_the_oracle(seed, m, n, rank):
    """Catches turns taken in another order, a rank off by one, a sparse part of another count, and
    factors that do not give back the directions."""
    A = matrix(seed, m, n)
    recipe = se.Recipe(low_rank=se.LowRank(rank, steps=4))
    out = se.sparsify(A, recipe, 0.3)
    kept = entries_to_keep(A.size, 0.3) - rank * (m + n)
    S = np.zeros_like(A)
    for _ in range(4):
        L = best(A - S, np.eye(n), rank)
        S = largest(A - L, kept)
    found, left, right = parts(out)
    error = np.linalg.norm(found + left @ right - A)
    assert error == pytest.approx(np.linalg.norm(S + L - A), rel=1e-2)
    assert np.count_nonzero(found) == kept
    assert out.nnz == kept + left.size + right.size
    assert out.sparsity == pytest.approx(0.3, abs=0.5 / A.size + 1e-9)


@EXACT
@given(st.integers(0, 99), st.integers(10, 14), st.integers(10, 14), METRICS)
def test_factors_are_the_best_beside_the_sparse_part(seed, m, n, metric):
    """Catches a root that is transposed, inverted on the wrong side, or not undone."""
    A, X = matrix(seed, m, n), samples(seed, n)
    recipe = se.Recipe(low_rank=se.LowRank(2, metric=metric, steps=1))
    found, left, right = parts(se.sparsify(A, recipe, 0.2, inputs=X))
    C = root(X) if metric == "outputs" else np.diag(np.sqrt((X**2).mean(0)))
    np.testing.assert_allclose(left @ right, best(A, C, 2), atol=1e-2 * np.abs(A).max())
    scale = np.sqrt((X**2).mean(0))
    kept = entries_to_keep(A.size, 0.2) - 2 * (m + n)
    assert (found != 0).sum() == kept
    assert ((found != 0) == (largest(A - left @ right, kept, scale) != 0)).mean() > 0.99


@EXACT
@given(st.integers(0, 99), st.integers(8, 14), st.integers(8, 14))
def test_the_error_chosen_by_is_the_outputs(seed, m, n):
    """Catches an error measured in the wrong norm: C C^T must be the damped second moments."""
    X, E = samples(seed, n), matrix(seed, m, n)
    moments = Moments.of(torch.from_numpy(X), n)
    found = Root(moments, "outputs", torch.float64).times(torch.from_numpy(E)).numpy()
    np.testing.assert_allclose(found, E @ root(X), rtol=1e-9, atol=1e-9)


@EXACT
@given(
    st.integers(0, 99),
    st.sampled_from([None, "least-squares", "alps", "spectral", "bias-correction"]),
)
def test_a_rank_that_is_searched_for_is_never_worse_than_none(seed, refit):
    """Catches a search that leaves out the sparse part alone, or judges by another error."""
    m, n = 16, 12
    A, X = matrix(seed, m, n, rank=seed % 4), samples(seed, n)
    plain = None if refit is None else REFITS[refit]()
    inputs = X if refit in ("least-squares", "alps", "bias-correction") else None
    alone = se.sparsify(A, se.Recipe(refit=plain), 0.5, inputs=inputs)
    both = se.sparsify(A, se.Recipe(refit=plain, low_rank=se.LowRank()), 0.5, inputs=inputs)
    covariance = np.cov(X.T, bias=True) if refit == "bias-correction" else X.T @ X / len(X)
    ridge = DAMPING * damping_level(torch.from_numpy(covariance.diagonal().copy()))
    C = np.eye(n) if inputs is None else np.linalg.cholesky(covariance + ridge * np.eye(n))
    merged = np.asarray(both.weight)
    if both.factors is not None:
        merged = merged + both.factors[0].numpy() @ both.factors[1].numpy()
    error, before = (np.linalg.norm((W - A) @ C) for W in (merged, np.asarray(alone.weight)))
    assert error <= before * (1 + 1e-6)
    assert both.nnz <= alone.nnz
    assert both.report.low_rank == (0 if both.factors is None else both.factors[0].shape[1])


def test_directions_that_are_there_are_found():
    """Catches turns that do not converge: a sparse matrix plus a low rank comes back whole."""
    random = np.random.default_rng(0)
    low = 4.0 * random.standard_normal((60, 2)) @ random.standard_normal((2, 50))
    spikes = np.where(random.random((60, 50)) < 0.1, 20.0 * random.standard_normal((60, 50)), 0.0)
    sparsity = 1 - (np.count_nonzero(spikes) + 2 * 110) / spikes.size
    out = se.sparsify(low + spikes, se.Recipe(low_rank=se.LowRank(2, steps=30)), sparsity)
    assert out.report.errors.frobenius < 0.01
    assert se.sparsify(low + spikes, "magnitude", sparsity).report.errors.frobenius > 0.05


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_sparse_part_makes_up_for_rounded_factors(dtype):
    """Catches factors in another dtype than the weight, and a remainder of unrounded ones."""
    A = torch.from_numpy(matrix(0, 24, 20)).to(dtype)
    out = se.sparsify(A, se.Recipe(low_rank=se.LowRank(2)), 0.5)
    left, right = out.factors
    assert left.dtype == right.dtype == out.weight.dtype == dtype
    wide = torch.float64
    remainder = A.to(wide) - left.to(wide) @ right.to(wide)
    kept = out.weight != 0
    close = 4 * torch.finfo(dtype).eps * A.abs().max().to(wide)
    assert (out.weight.to(wide) - remainder)[kept].abs().max() <= close


@EXACT
@given(st.integers(1, 300), st.integers(2, 12), st.integers(2, 12), st.floats(0.05, 0.95))
def test_a_rank_is_cut_to_the_budget(rank, m, n, sparsity):
    """Catches factors that take more than the budget, and a sparse part that is left nothing."""
    A = matrix(0, m, n, rank=1)
    out = se.sparsify(A, se.Recipe(low_rank=se.LowRank(rank, steps=1)), sparsity)
    assert out.nnz <= entries_to_keep(A.size, sparsity)
    if out.factors is not None:
        assert out.factors[0].shape[1] <= min(rank, m, n)
        assert np.count_nonzero(out.weight) >= m
    else:
        assert out.report.low_rank == 0


def test_what_is_refused_is_named():
    """Catches options that would be passed over in silence."""
    with pytest.raises(ValueError, match="low_rank: N of M"):
        se.Recipe(budget=se.Pattern("2:4"), low_rank=se.LowRank(2))
    with pytest.raises(TypeError, match="low_rank: expected None or LowRank"):
        se.Recipe(low_rank=4)  # type: ignore[arg-type]
    for arguments, expected in (
        ({"rank": 0}, "rank: expected at least 1; got 0"),
        ({"metric": "nope"}, "metric: expected"),
        ({"steps": 0}, "steps: expected at least 1; got 0"),
    ):
        with pytest.raises(ValueError, match=expected):
            se.LowRank(**arguments)


def test_it_survives_as_text(tmp_path):
    """Catches a recipe file that loses the factors, or a key that is not refused."""
    recipe = se.Recipe(low_rank=se.LowRank(8, metric="scaled"), refit=se.LeastSquares())
    recipe.save(tmp_path / "recipe.toml")
    assert se.Recipe.load(tmp_path / "recipe.toml") == recipe
    se.Recipe(low_rank=se.LowRank()).save(tmp_path / "default.toml")
    assert se.Recipe.load(tmp_path / "default.toml").low_rank == se.LowRank()
    with pytest.raises(ValueError, match=r"low_rank.ranks: expected one of rank, metric, steps"):
        se.Recipe.from_dict({"low_rank": {"ranks": 3}})
