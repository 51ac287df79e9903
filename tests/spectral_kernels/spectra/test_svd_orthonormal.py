"""Orthonormalisation alone: ill-conditioned, deficient and empty blocks, beside a basis or not."""

from collections.abc import Callable
from typing import Any

import array_api_compat
import numpy as np
import pytest
from spectral_kernels.spectra import _orthonormal
from spectral_kernels.spectra._orthonormal import orthonormalise
from spectral_kernels.spectra.norms import spectral_error, spectral_norm
from spectral_kernels.spectra.svd import randomized_svd

from tests.support.spectra_cases import LIBRARIES, matrix_of, rounding, to_library, to_numpy

ROWS, BLOCK = 150, 12
GENERATOR = np.random.default_rng(11)
BASIS = np.linalg.qr(GENERATOR.standard_normal((ROWS, 20)))[0]
SPARE = GENERATOR.uniform(-1, 1, (ROWS, BLOCK))
MIX = GENERATOR.standard_normal((20, BLOCK))

BLOCKS: dict[str, Callable[[], np.ndarray]] = {
    "random": lambda: GENERATOR.standard_normal((ROWS, BLOCK)),
    "condition 1e3": lambda: matrix_of(np.geomspace(1, 1e-3, BLOCK), ROWS),
    "condition 1e6": lambda: matrix_of(np.geomspace(1, 1e-6, BLOCK), ROWS),
    "condition 1e14": lambda: matrix_of(np.geomspace(1, 1e-14, BLOCK), ROWS),
    "graded columns": lambda: GENERATOR.standard_normal((ROWS, BLOCK)) * 10.0 ** -np.arange(BLOCK),
    "rank 3": lambda: matrix_of(np.arange(BLOCK) < 3.0, ROWS),
    "zero": lambda: np.zeros((ROWS, BLOCK)),
    "zero columns": lambda: GENERATOR.standard_normal((ROWS, BLOCK)) * (np.arange(BLOCK) % 2),
    "equal columns": lambda: np.ones((ROWS, BLOCK)),
    "inside the basis": lambda: BASIS @ MIX,
    "almost inside": lambda: BASIS @ MIX + 1e-5 * GENERATOR.standard_normal((ROWS, BLOCK)),
}


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("with_basis", [False, True])
@pytest.mark.parametrize("block", BLOCKS)
def test_orthonormal_whatever_the_rank(
    block: str, with_basis: bool, dtype: str, library: str
) -> None:
    """Catches a Cholesky factorization that fails or is trusted on a near singular Gram matrix,
    a missing second projection, and directions that a deficient block leaves undefined.
    """
    W, B, spare = (to_library(x.astype(dtype), library) for x in (BLOCKS[block](), BASIS, SPARE))
    xp = array_api_compat.array_namespace(W)
    found = orthonormalise(xp, W, B if with_basis else None, lambda: spare)
    Q, R = (to_numpy(x) for x in found)
    tolerance = rounding(dtype)
    np.testing.assert_allclose(Q.T @ Q, np.eye(BLOCK), atol=tolerance)
    exact = to_numpy(W)
    product = Q @ R
    if with_basis:
        np.testing.assert_allclose(BASIS.T @ Q, 0, atol=tolerance)
        product += BASIS @ (BASIS.T @ exact)
    np.testing.assert_allclose(product, exact, atol=tolerance * max(1, np.abs(exact).max()))


def test_which_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a fallback that is never reached, or is taken by blocks that do not need it."""
    taken: list[str] = []

    def spy(name: str) -> None:
        genuine = getattr(_orthonormal, name)

        def wrapper(*arguments: Any) -> Any:
            taken.append(name)
            return genuine(*arguments)

        monkeypatch.setattr(_orthonormal, name, wrapper)

    spy("cholesky_pass")
    spy("householder")
    xp = array_api_compat.array_namespace(SPARE)
    ways = {}
    for name in ("random", "condition 1e3", "zero columns"):
        taken.clear()
        orthonormalise(xp, BLOCKS[name]().astype(np.float32), None, lambda: SPARE)
        ways[name] = (taken.count("cholesky_pass"), taken.count("householder"))
    assert ways == {"random": (2, 0), "condition 1e3": (3, 0), "zero columns": (4, 1)}


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exactly_low_rank_matrices(library: str, dtype: str) -> None:
    """Catches a shift that does not grow with the length of the columns, and a factorization that
    fails on matrices of equal entries, signs or rows."""
    random = np.random.default_rng(12)
    signs = random.choice([-1.0, 1.0], (3, 600))
    one_hot = np.zeros((600, 500))
    one_hot[np.arange(600), random.integers(0, 3, 600)] = 0.05
    matrices = (np.ones((600, 400)), np.outer(signs[0], signs[1, :400]), one_hot, signs.T @ signs)
    for A in (matrix.astype(dtype) for matrix in matrices):
        exact = np.linalg.norm(A.astype(np.float64), 2)
        X = to_library(A, library)
        for found in (spectral_norm(X).value, randomized_svd(X, 5, depth=3).S[0]):
            np.testing.assert_allclose(float(to_numpy(found)), exact, rtol=1e-5)
        S = to_library(A * (random.random(A.shape) > 0.5).astype(dtype), library)
        assert np.isfinite(float(to_numpy(spectral_error(X, S).value)))
