"""spectral_norm and spectral_error against float64 numpy.linalg.norm(., 2)."""

import warnings
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spectral_kernels.spectra import _operators
from spectral_kernels.spectra.norms import spectral_error, spectral_norm

from tests.support.spectra_cases import (
    LIBRARIES,
    SPECTRA,
    matrix_of,
    rounding,
    to_library,
    to_numpy,
)


def sparsified(A: np.ndarray, share: float = 0.3) -> np.ndarray:
    return A * (np.abs(A) >= np.quantile(np.abs(A), 1 - share))


def torch_csr(S: np.ndarray) -> torch.Tensor:
    rows = scipy.sparse.csr_array(S)
    parts = (torch.from_numpy(x) for x in (rows.indptr, rows.indices, rows.data))
    return torch.sparse_csr_tensor(*parts, size=S.shape, check_invariants=True)


pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("family", SPECTRA)
def test_norm_of_known_spectra(family: str, dtype: str, library: str) -> None:
    """Catches a norm that stops short of its tolerance, or whose error estimate does."""
    A = matrix_of(SPECTRA[family]).astype(dtype)
    exact = np.linalg.norm(A.astype(np.float64), 2)
    found = spectral_norm(to_library(A, library))
    value, error = float(to_numpy(found.value)), float(to_numpy(found.error))
    assert exact * (1 - 1e-3) <= value <= exact * (1 + rounding(dtype))
    assert exact - value <= 2 * error + rounding(dtype) * exact <= 4e-3 * exact
    assert str(found.value.dtype).endswith(dtype)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("family", ["fast", "slow", "linear", "tiny", "huge", "outlier", "zero"])
def test_error_of_dense_sparsification(family: str, library: str) -> None:
    """Catches a difference taken at the wrong scale or the wrong way round."""
    A = matrix_of(SPECTRA[family]).astype(np.float32)
    A = np.stack([A, A[::-1] / 3])
    S = np.stack([sparsified(X) for X in A])
    exact = np.linalg.norm(A.astype(np.float64) - S, 2, axis=(-2, -1))
    for X, Y in ((A, S), (np.swapaxes(A, 1, 2), np.swapaxes(S, 1, 2))):
        found = spectral_error(to_library(X, library), to_library(Y, library))
        np.testing.assert_allclose(to_numpy(found.value), exact, rtol=1e-3)


@pytest.mark.parametrize(
    "convert",
    [
        torch_csr,
        lambda S: torch.from_numpy(S).to_sparse_csc(),
        lambda S: torch.from_numpy(S).to_sparse(),
        lambda S: torch.from_numpy(S).to(torch.bfloat16).to_sparse(),
        scipy.sparse.csr_array,
        scipy.sparse.csc_matrix,
        scipy.sparse.lil_array,
    ],
)
@pytest.mark.parametrize("shape", [(260, 200), (130, 300), (20, 30)])
def test_error_of_sparse_sparsification(convert: Any, shape: tuple[int, int]) -> None:
    """Catches a sparse layout whose transposed product is wrong or missing."""
    A = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    S = convert(sparsified(A))
    dense = S.to_dense().double().numpy() if isinstance(S, torch.Tensor) else S.toarray()
    X = torch.from_numpy(A) if isinstance(S, torch.Tensor) else A
    exact = np.linalg.norm(A.astype(np.float64) - dense, 2)
    assert float(spectral_error(X, S).value) == pytest.approx(exact, rel=1e-3)


def test_the_difference_is_never_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches A - S in memory: the whole matrix must not be asked for."""

    def refuse(self: Any) -> Any:
        raise AssertionError("the operator was made dense")

    monkeypatch.setattr(_operators.Operator, "dense", refuse)
    A = np.random.default_rng(1).standard_normal((400, 300))
    S = scipy.sparse.csr_array(sparsified(A))
    assert spectral_error(A, S).iterations > 0


@pytest.mark.parametrize("library", LIBRARIES)
def test_equal_matrices_differ_by_rounding(library: str) -> None:
    """Catches an iteration that chases its own rounding noise when A = S."""
    A = matrix_of(SPECTRA["slow"]).astype(np.float32)
    found = spectral_error(to_library(A, library), to_library(A, library))
    assert float(to_numpy(found.value)) <= 1e-6
    assert 0 < found.iterations <= 6
    noisy = (A * (1 + 2.0**-22)).astype(np.float32)
    found = spectral_error(to_library(A, library), to_library(noisy, library))
    assert float(to_numpy(found.value)) <= 1e-5


def test_reproducible() -> None:
    """Catches a random start of the library's own."""
    A = np.random.default_rng(1).standard_normal((300, 200))
    S = sparsified(A)
    assert spectral_error(A, S, seed=5) == spectral_error(A, S, seed=5)
    assert spectral_error(A, S, seed=5) != spectral_error(A, S, seed=6)


@settings(max_examples=30)
@given(m=st.integers(1, 120), n=st.integers(1, 120), seed=st.integers(0, 2**32))
def test_bounds(m: int, n: int, seed: int) -> None:
    """Catches a norm above the Frobenius norm or below the largest column, at any shape."""
    A = np.random.default_rng(seed).standard_normal((m, n))
    value = float(spectral_norm(A, seed=seed).value)
    assert value <= np.linalg.norm(A) * (1 + 1e-12)
    assert value >= np.linalg.norm(A, axis=0).max() * (1 - 1e-3)
    assert value == pytest.approx(np.linalg.norm(A, 2), rel=1e-3)


@pytest.mark.parametrize(
    ("S", "error", "match"),
    [
        (np.ones((3, 4)), ValueError, r"S: expected the shape of A, \(4, 3\); got \(3, 4\)"),
        (torch.ones(4, 3), TypeError, "S: expected an array of the library of A"),
        (torch.ones(4, 3).to_sparse(), TypeError, "S: expected a sparse matrix of the library"),
        (np.ones((4, 3), dtype=int), TypeError, "S: expected dtype .* got int64"),
        (scipy.sparse.csr_array(np.eye(4, 3, dtype=int)), TypeError, "S: expected dtype"),
        (np.full((4, 3), np.nan), ValueError, "S: expected finite entries"),
        (scipy.sparse.csr_array(np.full((4, 3), np.inf)), ValueError, "S: expected finite entries"),
    ],
)
def test_refused_sparsifications(S: Any, error: type[Exception], match: str) -> None:
    """Catches an S that does not fit A, with a message that names nothing."""
    with pytest.raises(error, match=match):
        spectral_error(np.ones((4, 3)), S)


def test_refused_matrices_and_arguments() -> None:
    """Catches checks that randomized_svd has and the norms lack."""
    good = np.ones((4, 3))
    with pytest.raises(TypeError, match="S: expected a dense or sparse matrix; got"):
        spectral_error(good, [[1.0]])
    for call in (spectral_norm, lambda A, **k: spectral_error(A, good, **k)):
        with pytest.raises(ValueError, match="A: expected finite entries"):
            call(np.full((4, 3), np.nan))
        with pytest.raises(ValueError, match="tolerance: expected"):
            call(good, tolerance=-1.0)
        with pytest.raises(ValueError, match="seed: expected"):
            call(good, seed=-1)


@pytest.mark.parametrize("library", LIBRARIES)
def test_wide_matrices_need_no_square(library: str) -> None:
    """Catches a fallback that makes a matrix of n x n for one of few rows and n columns."""
    A = np.random.default_rng(5).standard_normal((4, 200_000)).astype(np.float32)
    S = sparsified(A)
    for whole, part in ((A, S), (A.T, S.T)):
        X, Y = (to_library(np.ascontiguousarray(one), library) for one in (whole, part))
        np.testing.assert_allclose(
            float(to_numpy(spectral_norm(X).value)), np.linalg.norm(A.astype(float), 2), rtol=1e-5
        )
        np.testing.assert_allclose(
            float(to_numpy(spectral_error(X, Y).value)),
            np.linalg.norm(A.astype(float) - S, 2), rtol=1e-5,
        )  # fmt: skip


def test_sparse_matrices_of_other_layouts_are_refused() -> None:
    """Catches an error of torch's own for a batch of sparse matrices, or one in blocks."""
    A = torch.randn(4, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's blocks are in beta
        blocks = A.to_sparse_bsr((2, 2))
    for S in (blocks, torch.stack([A, A]).to_sparse()):
        with pytest.raises((TypeError, ValueError), match="S: expected"):
            spectral_error(A, S)
