"""spectral_density against the exact distribution of singular values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spectral_kernels.spectra.density import SpectralDensity, spectral_density

from tests.support.spectra_cases import LIBRARIES, SPECTRA, matrix_of, to_library, to_numpy


def wasserstein(found: SpectralDensity, exact: np.ndarray) -> float:
    """The Wasserstein-1 distance to the distribution of the values `exact`, over the largest."""
    nodes, weights = to_numpy(found.nodes), to_numpy(found.weights)
    points = np.sort(np.concatenate([nodes, exact]))
    ours = (weights * (nodes <= points[:, None])).sum(1)
    theirs = (exact <= points[:, None]).mean(1)
    return float(np.sum(np.abs(ours - theirs)[:-1] * np.diff(points)) / (exact.max() or 1.0))


def cumulative(found: SpectralDensity, x: np.ndarray) -> np.ndarray:
    """The share of the singular values that are at most x (p,): (..., p)."""
    nodes, weights = to_numpy(found.nodes), to_numpy(found.weights)
    return np.where(nodes[..., None, :] <= x[:, None], weights[..., None, :], 0.0).sum(-1)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("family", SPECTRA)
def test_known_spectra(family: str, dtype: str, library: str) -> None:
    """Catches wrong quadrature weights, lost orthogonality, and a breakdown at an exact subspace
    that turns to NaN. The bound is the source's resolution 1 / steps and the noise of a share.
    """
    A = matrix_of(SPECTRA[family]).astype(dtype)
    found = spectral_density(to_library(A, library), steps=40, probes=10)
    assert tuple(found.nodes.shape) == tuple(found.weights.shape) == (400,)
    assert to_numpy(found.weights).sum() == pytest.approx(1, abs=1e-5)
    assert (to_numpy(found.weights) >= 0).all()
    exact = np.linalg.svd(A.astype(np.float64), compute_uv=False)
    assert wasserstein(found, exact) <= 1 / 40 + 1 / np.sqrt(10 * 200)
    assert to_numpy(found.nodes).max() <= exact[0] * (1 + 1e-5)


def test_more_steps_and_probes_are_sharper() -> None:
    """Catches arguments that are not read."""
    A = np.random.default_rng(3).standard_normal((500, 400))
    exact = np.linalg.svd(A, compute_uv=False)
    few, steps, both = (
        wasserstein(spectral_density(A, steps=k, probes=p), exact)
        for k, p in ((4, 2), (60, 2), (60, 40))
    )
    assert few > 2 * steps
    assert steps > 2 * both


@pytest.mark.parametrize("library", LIBRARIES)
def test_cumulative_of_a_batch(library: str) -> None:
    """Catches a batch that shares its nodes, and weights that go with other nodes."""
    A = np.stack([matrix_of(np.where(np.arange(100) < 30, scale, 0.1)) for scale in (1.0, 5.0)])
    A = A.astype(np.float32)
    for X in (A, np.swapaxes(A, 1, 2)):
        found = spectral_density(to_library(X, library), probes=30)
        grid = to_library(np.array([0.05, 0.5, 2.0, 6.0], dtype=np.float32), library)
        shares = cumulative(found, to_numpy(grid))
        expected = [[0, 0.7, 1, 1], [0, 0.7, 0.7, 1]]
        np.testing.assert_allclose(shares, expected, atol=0.05)


def test_reproducible_and_the_same_on_every_library() -> None:
    """Catches start vectors that are the library's own."""
    A = matrix_of(SPECTRA["slow"])
    ours = spectral_density(A, steps=10, seed=2)
    for library in ("numpy", "torch", "strict"):
        theirs = spectral_density(to_library(A, library), steps=10, seed=2)
        np.testing.assert_allclose(to_numpy(theirs.nodes), ours.nodes, rtol=1e-6)
        np.testing.assert_allclose(to_numpy(theirs.weights), ours.weights, atol=1e-9)
    assert (spectral_density(A, steps=10, seed=3).nodes != ours.nodes).any()


@settings(max_examples=30)
@given(m=st.integers(1, 60), n=st.integers(1, 60), rank=st.integers(0, 60), seed=st.integers(0))
def test_moments(m: int, n: int, rank: int, seed: int) -> None:
    """Catches weights that are off: the second moment of each probe is exactly |A v|^2, whatever
    the shape, the rank and the number of steps, and its mean is ||A||_F^2 / min(m, n).
    """
    seed %= 2**64
    generator = np.random.default_rng(seed)
    A = generator.standard_normal((m, rank)) @ generator.standard_normal((rank, n))
    short, long = (spectral_density(A, steps=steps, probes=6, seed=seed) for steps in (1, 50))
    moments = [float(np.sum(d.weights * d.nodes**2)) for d in (short, long)]
    assert moments[1] == pytest.approx(moments[0], rel=1e-9, abs=1e-12)
    mean = np.linalg.norm(A) ** 2 / min(m, n)
    assert 0 <= moments[0] <= min(m, n) * mean * (1 + 1e-9)


def test_refused_input() -> None:
    """Catches checks that randomized_svd has and the density lacks."""
    with pytest.raises(ValueError, match="A: expected finite entries"):
        spectral_density(np.full((3, 3), np.inf))
    with pytest.raises(TypeError, match="A: expected dtype"):
        spectral_density(np.ones((3, 3), dtype=np.int8))
    with pytest.raises(ValueError, match="steps: expected 1 or more; got 0"):
        spectral_density(np.ones((3, 3)), steps=0)
    with pytest.raises(ValueError, match="probes: expected 1 or more; got -2"):
        spectral_density(np.ones((3, 3)), probes=-2)
    with pytest.raises(ValueError, match="stream: expected"):
        spectral_density(np.ones((3, 3)), stream=-1)
