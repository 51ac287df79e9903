"""Refits on a fixed mask and those that choose it, against dense float64 references."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import spectral_engine as se
from spectral_engine.matrix.moments import Moments
from spectral_engine.matrix.sums import Accumulator
from spectral_engine.recipe.refits import REFITS
from spectral_engine.refitting import least_squares as least_squares_module
from spectral_engine.refitting.alps import alps_mask
from spectral_engine.refitting.apply import MaskBudget, bias_shift, refitted
from spectral_engine.refitting.least_squares import least_squares
from spectral_engine.refitting.sparsegpt import inverse_factor, sparsegpt
from spectral_engine.refitting.spectral import spectral_refit

CALIBRATED = [se.LeastSquares(), se.SparseGPT(), se.ALPS()]


def recipe(
    refit: se.Refit | None = None, group: str = "tensor", sparsity: float = 0.5
) -> se.Recipe:
    return se.Recipe(budget=se.Uniform(sparsity, group=group), refit=refit)


def problem(m: int, n: int, samples: int = 400, seed: int = 0, dtype=torch.float64):
    """A matrix, a random mask of half of it, and correlated inputs with a mean."""
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(m, n, generator=generator, dtype=torch.float64)
    mask = torch.rand(m, n, generator=generator) < 0.5
    mixing = torch.randn(n, n, generator=generator, dtype=torch.float64) / n**0.5
    X = torch.randn(samples, n, generator=generator, dtype=torch.float64) @ mixing + 0.3
    return A.to(dtype), mask, X


def output_error(A: torch.Tensor, S: torch.Tensor, X: torch.Tensor) -> float:
    return float(((A.double() - S.double()) @ X.mT).square().sum())


def exact(A: torch.Tensor, mask: torch.Tensor, H: torch.Tensor, damping: float) -> torch.Tensor:
    """Each row solved by a dense factorization of its own."""
    H = H + damping * H.diagonal().mean() * torch.eye(len(H), dtype=H.dtype)
    S = torch.zeros_like(A)
    for i, kept in enumerate(mask):
        if kept.any():
            S[i, kept] = torch.linalg.solve(H[kept][:, kept], (H @ A[i])[kept])
    return S


def test_least_squares_is_the_exact_solution():
    """Catches a wrong system: the mask on one side only, or damping left out of one side."""
    A, mask, X = problem(9, 24)
    mask[3] = False
    moments = Moments.of(X, 24)
    found = least_squares(A, mask, moments, tolerance=1e-12, steps=500)
    assert torch.allclose(found, exact(A, mask, moments.second, 0.01), rtol=1e-8, atol=1e-10)
    assert not found[~mask].any()


def test_least_squares_in_runs_of_rows(monkeypatch):
    """Catches rows lost or mixed where they are taken in several runs."""
    A, mask, X = problem(23, 12)
    moments = Moments.of(X, 12)
    whole = least_squares(A, mask, moments, tolerance=1e-12, steps=200)
    monkeypatch.setattr(least_squares_module, "_CHUNK", 1)
    runs = least_squares(A, mask, moments, tolerance=1e-12, steps=200)
    assert torch.allclose(whole, runs, rtol=1e-9, atol=1e-12)


def test_default_steps_are_enough():
    """Catches iterations that end early: the error must be within a percent of the best."""
    A, mask, X = problem(40, 96, samples=2000, dtype=torch.float32)
    moments = Moments.of(X, 96)
    found = least_squares(A, mask, moments)
    best = exact(A.double(), mask, moments.second, 0.01)
    assert output_error(A, found, X) <= 1.01 * output_error(A, best, X)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 30), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_least_squares_is_never_worse(m, n, samples, seed):
    """Catches a refit that does harm, NaN where there are fewer samples than features, and an
    entry outside the mask."""
    A, mask, X = problem(m, n, samples, seed)
    moments = Moments.of(X, n)
    ridge = 0.01 * moments.second.diagonal().mean()
    damped = moments.second + ridge * torch.eye(n, dtype=torch.float64)

    def energy(S: torch.Tensor) -> float:
        return float((((A - S) @ damped) * (A - S)).sum())

    found = least_squares(A, mask, moments)
    assert energy(found) <= energy(A * mask) * (1 + 1e-9)
    assert not found[~mask].any()


def test_inputs_of_zeros_change_nothing():
    """Catches a division by moments that are zero."""
    A, mask, _ = problem(5, 7)
    nothing = Moments.of(torch.zeros(4, 7), 7)
    assert torch.equal(least_squares(A, mask, nothing), A * mask)
    assert torch.isfinite(sparsegpt(A, nothing, 0.5)).all()
    assert torch.equal(alps_mask(A, nothing, lambda X: X * mask), mask)


def test_spectral_is_the_exact_solution():
    """Catches a subspace on the wrong side, a ridge that is lost, or CG that ends early."""
    A, mask, _ = problem(8, 6)
    found = spectral_refit(A, mask, rank=2, ridge=0.3, tolerance=1e-12, steps=300)
    svd = se.spectrum(A, 2)
    P, Q = svd.U @ svd.U.mT, svd.Vh.mT @ svd.Vh
    # vec(P S + S Q + ridge S), row by row
    eye = {size: torch.eye(size, dtype=torch.float64) for size in (6, 8, 48)}
    system = torch.kron(P, eye[6]) + torch.kron(eye[8], Q) + 0.3 * eye[48]
    kept = mask.flatten()
    expected = torch.zeros(48, dtype=torch.float64)
    expected[kept] = torch.linalg.solve(system[kept][:, kept], (system @ A.flatten())[kept])
    assert torch.allclose(found.flatten(), expected, rtol=1e-6, atol=1e-8)


def test_spectral_restores_leading_values():
    """Catches a spectral refit that does not what it is for: low stable rank, few entries."""
    generator = torch.Generator().manual_seed(1)
    U, V = (torch.linalg.qr(torch.randn(64, 64, generator=generator))[0] for _ in range(2))
    A = (U * torch.arange(1, 65).pow(-1.0)) @ V.mT
    plain = se.sparsify(A, sparsity=0.8)
    found = se.sparsify(A, recipe(se.SpectralRefit(), sparsity=0.8))
    assert torch.equal(found.mask, plain.mask)
    assert found.report.errors.spectral < 0.9 * plain.report.errors.spectral


def obs(A: torch.Tensor, H: torch.Tensor, drop: torch.Tensor) -> torch.Tensor:
    """Optimal brain surgeon from column to column, with the inverse of what is left of H."""
    W, n = A.clone(), A.shape[1]
    for j in range(n):
        inverse = torch.linalg.inv(H[j:, j:])
        error = torch.where(drop[:, j], W[:, j] / inverse[0, 0], 0.0)
        W[:, j:] -= error[:, None] * inverse[0]
        W[:, j] = torch.where(drop[:, j], 0.0, W[:, j])
    return W


@pytest.mark.parametrize("n", [20, 150])
def test_sparsegpt_on_a_mask_is_obs(n):
    """Catches a transposed factor, and errors lost where one block of columns ends."""
    A, mask, X = problem(6, n)
    moments = Moments.of(X, n)
    H = moments.second + 0.01 * moments.second.diagonal().mean() * torch.eye(n, dtype=torch.float64)
    found = sparsegpt(A, moments, 0.5, mask=mask)
    assert torch.allclose(found, obs(A, H, ~mask), rtol=1e-6, atol=1e-8)


def test_inverse_factor():
    """Catches the lower factor in place of the upper, and moments that are written to."""
    _, _, X = problem(1, 12)
    second = Moments.of(X, 12).second
    before = second.clone()
    U, ridge = inverse_factor(second, 0.01)
    assert torch.equal(second, before)
    assert torch.equal(U, U.triu())
    expected = torch.linalg.inv(second + ridge * torch.eye(12, dtype=torch.float64))
    assert torch.allclose(U.mT @ U, expected, rtol=1e-9, atol=1e-9 * float(expected.max()))


def test_moments_that_cannot_be_factored_are_refused():
    """Catches NaN out of a matrix that is not positive definite."""
    with pytest.raises(ValueError, match="refit: 'sparsegpt' expected second moments"):
        inverse_factor(torch.tensor([[1.0, 100.0], [100.0, 1.0]]), 0.01)


@pytest.mark.parametrize("refit", [se.SparseGPT(), se.ALPS()])
@pytest.mark.parametrize("group", ["tensor", "row"])
@pytest.mark.parametrize("sparsity", [0.0, 0.37, 0.9])
def test_own_masks_keep_the_count(refit, group, sparsity):
    """Catches a budget that is missed by a rounding in each block of columns."""
    A, _, X = problem(10, 140, dtype=torch.float32)
    out = se.sparsify(A, recipe(refit, group, sparsity), inputs=X)
    if group == "row":
        assert (out.mask.sum(1) == 140 - round(sparsity * 140)).all()
    else:
        assert out.nnz == 1400 - round(sparsity * 1400)
    assert out.nnz == out.report.nnz


def test_own_masks_under_a_pattern():
    """Catches a pattern that the refit's own choice forgets."""
    A, _, X = problem(10, 136)
    budget = MaskBudget(0.5, "row", se.Pattern("2:4").pattern)
    for refit in (se.SparseGPT(), se.ALPS()):
        found = refitted(refit, A, A, Moments.of(X, 136), budget)
        assert ((found != 0).reshape(10, 34, 4).sum(-1) == 2).all()


@pytest.mark.parametrize("refit", [se.SparseGPT(), se.ALPS()])
def test_zeros_stay_zero(refit):
    """Catches pruned entries that grow back when a matrix is pruned further."""
    A, mask, X = problem(12, 140)
    out = se.sparsify(A * mask, recipe(refit, sparsity=0.7), inputs=X)
    assert not (out.mask & ~mask).any()
    assert out.nnz == 12 * 140 - round(0.7 * 12 * 140)
    out = se.sparsify(A * mask, recipe(refit, sparsity=0.1), inputs=X)
    assert not (out.mask & ~mask).any()


def test_each_better_than_the_last():
    """Catches a refit that does not lower the error on its inputs as it should."""
    A, _, X = problem(48, 96, samples=3000, dtype=torch.float32)
    error = {
        name: output_error(
            A, se.sparsify(A, recipe(kind and kind(), "row", 0.6), inputs=X).weight, X
        )
        for name, kind in {None: None, **REFITS}.items()
        if kind is None or kind.needs_inputs
    }
    assert error["alps"] < 0.95 * min(error["least-squares"], error["sparsegpt"])
    assert error["least-squares"] < 0.8 * error[None]
    assert error["sparsegpt"] < error[None]


@pytest.mark.parametrize(
    "refit",
    [
        se.BiasCorrection(),
        *(kind(bias_correction=True) for kind in (se.SpectralRefit, se.LeastSquares, se.SparseGPT)),
        se.ALPS(bias_correction=True),
    ],
)
def test_bias_correction_keeps_the_mean(refit):
    """Catches a shift of the wrong sign, or of the weights before the refit."""
    A, _, X = problem(8, 20)
    out = se.sparsify(A, recipe(refit), inputs=X)
    before, after = (X @ A.mT).mean(0), (X @ out.weight.mT).mean(0) + out.bias
    assert torch.allclose(before, after, rtol=1e-10, atol=1e-10)


def test_bias_correction_fits_deviations():
    """Catches a fit that spends weights on a mean which the bias mends."""
    A, mask, X = problem(8, 20, samples=4000)
    X = X + 5.0
    moments = Moments.of(X, 20)
    spread = moments.deviations()
    assert torch.allclose(spread.second, torch.cov(X.mT, correction=0), rtol=1e-8, atol=1e-10)
    assert spread.deviations() is spread
    found = least_squares(A, mask, spread, tolerance=1e-12, steps=500)
    shift = bias_shift(A, found, spread)
    plain = least_squares(A, mask, moments, tolerance=1e-12, steps=500)

    def error(S: torch.Tensor, bias: torch.Tensor) -> float:
        return float((X @ A.mT - X @ S.mT - bias).square().sum())

    assert error(found, shift) < error(plain, bias_shift(A, plain, moments))


def test_inputs_of_two_models():
    """Catches the cross moments transposed: S x must meet A x', which ordinary least squares on
    the samples themselves gives."""
    A, mask, X = problem(5, 8)
    dense = X + 0.5 * torch.randn(X.shape, generator=torch.Generator().manual_seed(3),
                                  dtype=X.dtype)  # fmt: skip
    total = Accumulator(8, None, torch.float64, torch.device("cpu"))
    total.add(X, dense)
    moments = total.moments()
    found = least_squares(A, mask, moments, damping=1e-12, tolerance=1e-14, steps=500)
    for i, kept in enumerate(mask):
        expected = torch.linalg.lstsq(X[:, kept], dense @ A[i]).solution
        assert torch.allclose(found[i, kept], expected, rtol=1e-6, atol=1e-8)
    whole = sparsegpt(A, moments, 0.0, damping=1e-10)
    assert torch.allclose(whole.mT, torch.linalg.lstsq(X, dense @ A.mT).solution, rtol=1e-5)
    shift = bias_shift(A, found, moments)
    assert torch.allclose((dense @ A.mT).mean(0), (X @ found.mT).mean(0) + shift)


@pytest.mark.parametrize("refit", [se.SpectralRefit(), *CALIBRATED])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("numpy", [False, True])
def test_kinds_and_dtypes(refit, dtype, numpy):
    """Catches a refit in half precision, or a result of another kind or dtype."""
    if numpy and dtype == torch.bfloat16:
        pytest.skip("NumPy has no bfloat16")
    A, _, X = problem(12, 16, dtype=dtype)
    weight = A.numpy() if numpy else A
    out = se.sparsify(weight, recipe(refit), inputs=X)
    assert type(out.weight) is type(weight)
    assert out.weight.dtype == weight.dtype
    reference = se.sparsify(A.double(), recipe(refit), inputs=X)
    rounding = 0.05 if dtype == torch.bfloat16 else 0.01
    difference = torch.as_tensor(out.weight).double() - reference.weight
    same = torch.as_tensor(out.mask) == reference.mask
    assert same.double().mean() > 0.98
    assert float((difference * same).abs().max()) < rounding * float(reference.weight.abs().max())


def test_convolutions_and_strides():
    """Catches a refit that writes to a copy of a weight which is not stored row by row."""
    A, _, X = problem(6, 36, dtype=torch.float32)
    weight = A.reshape(6, 4, 3, 3).to(memory_format=torch.channels_last)
    found = se.sparsify(weight, recipe(se.LeastSquares()), inputs=X).weight
    flat = se.sparsify(A, recipe(se.LeastSquares()), inputs=X).weight
    assert torch.allclose(found.reshape(6, 36), flat, rtol=1e-5, atol=1e-6)


def test_calibrated_spectral_scores_are_of_the_scaled_matrix():
    """Catches features weighed twice, or after the truncation instead of before it."""
    A, _, X = problem(12, 10)
    X = X * torch.arange(1, 11).pow(2)
    scale = X.square().mean(0).sqrt()
    U, S, Vh = torch.linalg.svd(A * scale, full_matrices=False)
    B = (U[:, :3] * S[:3]) @ Vh[:3]
    principal, aligned = se.Principal(rank=3, mixture=0.0), se.Aligned(rank=3)
    for method, score in ((principal, B.abs()), (aligned, (A * scale * B).clamp(min=0))):
        out = se.sparsify(A, method, 0.75, inputs=X)
        assert torch.equal(out.mask, score >= score.flatten().topk(30).values[-1])


def test_overflow_is_refused():
    """Catches infinities written into a float16 weight."""
    A = torch.full((4, 4), 6e4, dtype=torch.float16)
    X = torch.ones(20, 4) + 1e-3 * torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"refit: entries that LeastSquares\(\) gives overflow"):
        se.sparsify(A, recipe(se.LeastSquares()), inputs=X)


@pytest.mark.parametrize(
    "refit", [*CALIBRATED, se.BiasCorrection(), se.Scale(bias_correction=True)]
)
def test_inputs_are_asked_for(refit):
    """Catches a refit without what it needs, which would leave the weight as it was."""
    with pytest.raises(ValueError, match=r"calibration: .* needs calibration inputs; got none"):
        se.sparsify(np.ones((2, 4), np.float32), recipe(refit))


def test_moments_of_another_layer():
    """Catches moments of another number of inputs, which would fail in a product."""
    other = Moments(torch.eye(3), torch.zeros(3), 1)
    with pytest.raises(ValueError, match=r"inputs: expected moments \(4, 4\); got \(3, 3\)"):
        se.sparsify(np.ones((2, 4), np.float32), inputs=other)
    with pytest.raises(TypeError, match="bias_correction: expected True or False; got 1"):
        se.ALPS(bias_correction=1)
