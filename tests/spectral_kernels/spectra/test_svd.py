"""randomized_svd and singular_values against float64 numpy.linalg.svd, on every array library."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spectral_kernels.reference.stream import draws
from spectral_kernels.spectra import _krylov, _small
from spectral_kernels.spectra._arrays import namespace
from spectral_kernels.spectra.svd import SVD_STREAM, SVDResult, randomized_svd, singular_values

from tests.support.spectra_cases import (
    LIBRARIES,
    SPECTRA,
    matrix_of,
    rounding,
    to_library,
    to_numpy,
)

RANK = 12
TOLERANCE = 1e-4


def exact_values(A: np.ndarray) -> np.ndarray:
    return np.linalg.svd(A.astype(np.float64), compute_uv=False)


def check_triplets(A: np.ndarray, found: SVDResult, dtype: str) -> None:
    """Shapes, orthonormality, order, and U^T A V = diag(S)."""
    U, S, Vh = (to_numpy(x) for x in found[:3])
    rank = S.shape[-1]
    assert (U.shape, Vh.shape) == ((A.shape[0], rank), (rank, A.shape[1]))
    np.testing.assert_allclose(U.T @ U, np.eye(rank), atol=rounding(dtype))
    np.testing.assert_allclose(Vh @ Vh.T, np.eye(rank), atol=rounding(dtype))
    assert (np.diff(S) <= 0).all()
    scale = S[0] or 1.0
    np.testing.assert_allclose(
        U.T @ (A.astype(np.float64) / scale) @ Vh.T, np.diag(S / scale), atol=rounding(dtype)
    )


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("family", SPECTRA)
def test_known_spectra(family: str, dtype: str, library: str) -> None:
    """Catches lost accuracy or orthonormality on any family of spectra: a Gram matrix that
    overflows at 1e20, a block that collapses at low rank, a repeated value counted once, an error
    estimate that hides the error.
    """
    A = matrix_of(SPECTRA[family]).astype(dtype)
    exact = exact_values(A)[:RANK]
    found = randomized_svd(to_library(A, library), RANK, tolerance=TOLERANCE)
    check_triplets(A, found, dtype)
    deviation = np.abs(to_numpy(found.S) - exact)
    slack = rounding(dtype) * exact[0]
    assert (deviation <= TOLERANCE * exact + slack).all()
    assert (deviation <= 2 * to_numpy(found.error) + slack / 10).all()
    assert (to_numpy(found.error) <= 2 * TOLERANCE * exact + slack).all()
    # Without a gap or decay the space outgrows such a small matrix, which is then factored whole.
    assert found.iterations <= 20
    assert found.iterations > 0 or family == "linear"


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("shape", [(1, 500), (500, 1), (1, 1), (40, 30), (200, 900)])
def test_shapes_small_and_wide(shape: tuple[int, int], library: str) -> None:
    """Catches a Krylov space wider than the matrix, and wide input that is not turned round."""
    A = np.random.default_rng(5).standard_normal(shape).astype(np.float32)
    rank = min(8, *shape)
    found = randomized_svd(to_library(A, library), rank, tolerance=TOLERANCE)
    check_triplets(A, found, "float32")
    np.testing.assert_allclose(to_numpy(found.S), exact_values(A)[:rank], rtol=TOLERANCE)


@pytest.mark.parametrize("library", LIBRARIES)
def test_batch_is_the_matrices_one_by_one(library: str) -> None:
    """Catches a batch that mixes its matrices, or a test matrix that depends on the batch."""
    names = ["slow", "low rank", "huge", "zero", "repeated", "fast"]
    A = np.stack([matrix_of(SPECTRA[name], seed=i) for i, name in enumerate(names)])
    A = A.reshape(2, 3, *A.shape[1:]).astype(np.float32)
    found = randomized_svd(to_library(A, library), RANK, depth=4)
    assert tuple(found.U.shape) == (2, 3, A.shape[-2], RANK)
    assert tuple(found.error.shape) == tuple(found.S.shape) == (2, 3, RANK)
    for index in np.ndindex(2, 3):
        alone = randomized_svd(to_library(A[index], library), RANK, depth=4)
        S = to_numpy(found.S)[index]
        np.testing.assert_allclose(S, to_numpy(alone.S), atol=2 * rounding("float32") * S[0])
        check_triplets(A[index], SVDResult(*(x[(*index, ...)] for x in found[:4]), 8), "float32")


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_library_starts_from_the_same_stream(library: str) -> None:
    """Catches a test matrix or a sign rule that is the library's own."""
    A = matrix_of(SPECTRA["slow"])
    ours = randomized_svd(A, RANK, depth=2, seed=3)
    theirs = randomized_svd(to_library(A, library), RANK, depth=2, seed=3)
    for x, y in zip(ours[:4], theirs[:4], strict=True):
        np.testing.assert_allclose(to_numpy(y), x, rtol=1e-9, atol=1e-9)
    other = randomized_svd(to_library(A, library), RANK, depth=2, seed=4)
    assert np.abs(to_numpy(other.S) - ours.S).max() > 1e-6


def test_sign_rule() -> None:
    """Catches a sign left to LAPACK: v_i . omega must not be negative, for A^T and for -A too."""
    A = matrix_of(SPECTRA["fast"])
    omega = draws((A.shape[1], 1), 0, SVD_STREAM)[:, 0].astype(np.float64) / 2**23 - 1
    found, turned, negated = (randomized_svd(X, RANK) for X in (A, A.T, -A))
    assert (found.Vh @ omega > 0).all()
    np.testing.assert_allclose(turned.U, found.Vh.T, atol=1e-12)
    np.testing.assert_allclose(turned.Vh, found.U.T, atol=1e-12)
    np.testing.assert_allclose(negated.Vh, found.Vh, atol=1e-9)
    np.testing.assert_allclose(negated.U, -found.U, atol=1e-9)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("exponent", [-80, -60, 70, 110])
def test_powers_of_two_change_no_bit(exponent: int, library: str) -> None:
    """Catches arithmetic done at the scale of the input, where squares overflow or vanish."""
    A = matrix_of(SPECTRA["slow"]).astype(np.float32)
    scaled = np.ldexp(A, exponent)
    found, other = (randomized_svd(to_library(X, library), RANK) for X in (A, scaled))
    np.testing.assert_array_equal(to_numpy(other.U), to_numpy(found.U))
    np.testing.assert_array_equal(to_numpy(other.S), np.ldexp(to_numpy(found.S), exponent))


def test_half_precision_works_in_float32() -> None:
    """Catches arithmetic in the 16 bits that came in."""
    A = matrix_of(SPECTRA["slow"])
    half, brain = A.astype(np.float16), torch.from_numpy(A).to(torch.bfloat16)
    for X, same in ((half, half.astype(np.float32)), (brain, brain.to(torch.float32))):
        found, expected = randomized_svd(X, RANK), randomized_svd(same, RANK)
        assert all(str(x.dtype).endswith("float32") for x in found[:4])
        np.testing.assert_array_equal(to_numpy(found.S), to_numpy(expected.S))


def test_depth_is_obeyed_and_buys_accuracy() -> None:
    """Catches an ignored depth, and an error estimate that does not shrink with the error."""
    A = matrix_of(SPECTRA["slow"])
    exact = exact_values(A)[:RANK]
    errors, estimates = [], []
    for depth in (1, 2, 3, 4):
        found = randomized_svd(A, RANK, depth=depth)
        assert found.iterations == 2 * depth
        assert (exact * (1 + 1e-12) >= found.S).all()
        errors.append(np.max(1 - found.S / exact))
        estimates.append(np.max(found.error / exact))
    assert (np.diff(errors) < 0).all()
    assert (np.diff(estimates) < 0).all()
    assert all(e <= 2 * estimate for e, estimate in zip(errors, estimates, strict=True))


def test_tolerance_is_a_choice() -> None:
    """Catches a tolerance that is not read: a tighter one must cost products and gain digits."""
    A = matrix_of(SPECTRA["slow"])
    exact = exact_values(A)[:RANK]
    loose, tight = (randomized_svd(A, RANK, tolerance=tolerance) for tolerance in (1e-2, 1e-10))
    assert loose.iterations < tight.iterations
    assert np.max(1 - tight.S / exact) < 1e-10 < np.max(1 - loose.S / exact) < 1e-2
    capped = randomized_svd(A, RANK, tolerance=1e-10, depth=2)
    assert capped.iterations == 4


def test_whole_matrix_where_the_space_fills_up() -> None:
    """Catches a space grown past the columns, and values short of the asked accuracy there."""
    A = np.random.default_rng(2).standard_normal((300, 130))
    found = randomized_svd(A, RANK, tolerance=1e-13)
    assert found.iterations == 0
    np.testing.assert_allclose(found.S, exact_values(A)[:RANK], rtol=1e-13)
    assert randomized_svd(A, RANK, depth=7).iterations == 0


@pytest.mark.parametrize("damage", ["columns only", "no projection"])
def test_without_orthonormalisation_it_diverges(
    damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The orthonormal basis earns its cost: without it the accuracy test above must fail."""
    genuine = _krylov.orthonormalise

    def columns_only(xp: Any, W: Any, basis: Any, spare: Any) -> tuple[Any, Any]:
        norms = np.linalg.norm(W, axis=-2, keepdims=True)
        return W / norms, norms * np.eye(W.shape[-1], dtype=W.dtype)

    def no_projection(xp: Any, W: Any, basis: Any, spare: Any) -> tuple[Any, Any]:
        return genuine(xp, W, None, spare)

    A = matrix_of(SPECTRA["slow"]).astype(np.float32)
    exact = exact_values(A)[:RANK]
    assert np.abs(randomized_svd(A, RANK, depth=4).S / exact - 1).max() < 1e-3
    broken = columns_only if damage == "columns only" else no_projection
    monkeypatch.setattr(_krylov, "orthonormalise", broken)
    assert np.abs(randomized_svd(A, RANK, depth=4).S / exact - 1).max() > 0.1


@settings(max_examples=40)
@given(m=st.integers(1, 90), n=st.integers(1, 90), seed=st.integers(0, 2**64 - 1), data=st.data())
def test_properties(m: int, n: int, seed: int, data: st.DataObject) -> None:
    """Catches a shape, rank, block or depth at which values leave [0, sigma_i] or miss it."""
    rank = data.draw(st.integers(1, min(m, n)))
    true_rank = data.draw(st.integers(0, min(m, n)))
    generator = np.random.default_rng(seed)
    A = generator.standard_normal((m, true_rank)) @ generator.standard_normal((true_rank, n))
    block = data.draw(st.integers(1, 2 * rank))
    depth = data.draw(st.none() | st.integers(-(-rank // min(block, m, n)), 2 * rank))
    found = randomized_svd(A, rank, depth=depth, block=block, seed=seed, tolerance=1e-6)
    exact = exact_values(A)[:rank]
    check_triplets(A, found, "float64")
    slack = rounding("float64") * exact[0]
    assert (exact + slack >= found.S).all()
    if depth is None:
        assert (exact * (1 - 1e-4) - slack <= found.S).all()


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    ("method", "dtype", "accuracy"),
    [
        ("auto", "float32", 5e-7),
        ("svd", "float32", 5e-6),
        ("gram", "float32", 1e-3),
        ("auto", "float64", 1e-14),
        ("gram", "float64", 1e-7),
    ],
)
@pytest.mark.parametrize("family", ["fast", "low rank", "tiny", "huge", "outlier", "zero"])
def test_whole_spectrum(
    family: str, method: Any, dtype: str, accuracy: float, library: str
) -> None:
    """Catches a Gram matrix in too few digits, and the wrong one (n x n of a wide matrix)."""
    A = matrix_of(SPECTRA[family]).astype(dtype)
    A = np.stack([A, A[::-1]])
    exact = exact_values(A)
    for X in (A, np.swapaxes(A, -1, -2)):
        S = singular_values(to_library(X, library), method)
        assert str(S.dtype).endswith(dtype)
        deviation = np.abs(to_numpy(S) - exact)
        assert (deviation <= accuracy * exact[:, :1]).all()


def test_gram_in_working_precision_drowns_small_values() -> None:
    """The documented limit of "gram" is real: "auto" is not just another name for it."""
    A = matrix_of(SPECTRA["fast"]).astype(np.float32)
    exact = exact_values(A)
    deviation = np.abs(singular_values(A, "gram") - exact) / exact[0]
    assert deviation.max() > 1e-5
    assert (np.abs(singular_values(A, "auto") - exact) / exact[0]).max() < 1e-6


@pytest.mark.parametrize("shape", [(95, 40), (96, 200), (97, 300), (2, 300, 193)])
@pytest.mark.parametrize("library", LIBRARIES)
def test_gram_has_the_lower_triangle(shape: tuple[int, ...], library: str) -> None:
    """Catches a block of the triangle left out, at and beside the edges of a block, and a matrix
    of a batch that gets another's."""
    A = np.random.default_rng(0).standard_normal(shape)
    X = to_library(A, library)
    G = to_numpy(_small.gram(namespace(X, "A"), X, X.dtype))
    wide = A if shape[-2] <= shape[-1] else np.swapaxes(A, -1, -2)
    exact = wide @ np.swapaxes(wide, -1, -2)
    np.testing.assert_allclose(np.tril(G), np.tril(exact), atol=1e-11)


@pytest.mark.parametrize("width", [0.1, 0.03, 0.01, 0.003, 0.0])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-5])
def test_nearly_flat_spectra(width: float, tolerance: float) -> None:
    """Catches an estimate that believes the first change, which is of second order where all
    values are nearly alike, as those of an orthogonal layer."""
    values = 1.0 - width * np.linspace(0.0, 1.0, len(SPECTRA["slow"]))
    found = randomized_svd(matrix_of(values), 8, tolerance=tolerance)
    assert np.max(np.abs(found.S / values[:8] - 1)) <= tolerance


@pytest.mark.parametrize("width", [0.01, 0.003])
def test_nearly_flat_spectra_in_float32(width: float) -> None:
    """Catches an estimate that takes a change below rounding for the end: in a flat spectrum every
    second product changes the values by the square of the width, the others by the width.
    """
    values = 1.0 - width * np.linspace(0.0, 1.0, 700)
    A = matrix_of(values, rows=700).astype(np.float32)
    for tolerance in (1e-3, 2e-4):
        found = randomized_svd(A, 8, tolerance=tolerance)
        assert found.iterations > 0
        deviation = np.abs(found.S / values[:8] - 1)
        assert deviation.max() <= tolerance
        assert (deviation <= 2 * found.error).all()
