"""Errors against closed forms in float64 NumPy, exact and matrix-free."""

import json
import math

import numpy as np
import pytest
import torch

import spectral_engine as se
from spectral_engine.matrix.errors import batch_errors


def pair(m: int, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A matrix with decaying singular values, and half of it."""
    rng = np.random.default_rng(seed)
    U, _ = np.linalg.qr(rng.standard_normal((m, min(m, n))))
    V, _ = np.linalg.qr(rng.standard_normal((n, min(m, n))))
    A = (U / np.arange(1, min(m, n) + 1)) @ V.T
    return A, np.where(rng.random((m, n)) < 0.5, A, 0)


@pytest.mark.parametrize("method", ["exact", "matrix-free"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (60, 90), (300, 40)])
def test_against_numpy(shape, method):
    """Catches a wrong norm, a missing square root, absolute for relative, values out of order."""
    A, S = pair(*shape)
    found = se.errors(A, S, 6, method=method)
    rank = min(6, *shape)
    sigma, tau = (np.linalg.svd(X, compute_uv=False)[:rank] for X in (A, S))
    tolerance = 1e-12 if method == "exact" else 3e-3
    assert found.spectral == pytest.approx(
        np.linalg.norm(A - S, 2) / np.linalg.norm(A, 2), rel=tolerance
    )
    assert found.frobenius == pytest.approx(np.linalg.norm(A - S) / np.linalg.norm(A), rel=1e-12)
    np.testing.assert_allclose(found.original, sigma, rtol=tolerance)
    np.testing.assert_allclose(found.sparse, tau, rtol=tolerance)
    np.testing.assert_allclose(found.singular_values, abs(tau - sigma) / sigma, atol=10 * tolerance)
    assert found.mean_singular_value == pytest.approx(found.singular_values.mean())


def test_angles_of_known_subspaces():
    """Catches cosines returned for angles, left swapped with right, and a wrong order."""
    turn = 0.3
    A = np.diag([2.0, 1.0, 0.0, 0.0])
    R = np.eye(4)
    R[np.ix_([1, 2], [1, 2])] = [
        [math.cos(turn), -math.sin(turn)],
        [math.sin(turn), math.cos(turn)],
    ]
    found = se.errors(A, R @ A, 2, method="exact")
    np.testing.assert_allclose(found.left_angles, [0, turn], atol=1e-7)
    np.testing.assert_allclose(found.right_angles, [0, 0], atol=1e-7)


@pytest.mark.parametrize("method", ["exact", "matrix-free"])
def test_identical_matrices(method):
    """Catches rounding that shows as an error where nothing has changed."""
    A = pair(30, 50)[0].astype(np.float32)
    found = se.errors(A, A.copy(), method=method)
    assert (found.spectral, found.frobenius, found.singular_values.max()) == (0, 0, 0)


def test_zero_matrices():
    """Catches 0 / 0, and a change from nothing that is called no error."""
    zero, one = np.zeros((4, 5)), np.ones((4, 5))
    same = se.errors(zero, zero)
    assert (same.spectral, same.frobenius, same.mean_singular_value) == (0, 0, 0)
    grown = se.errors(zero, one)
    assert grown.spectral == grown.frobenius == math.inf
    gone = se.errors(one, zero)
    assert (gone.spectral, gone.frobenius) == pytest.approx((1, 1))


@pytest.mark.parametrize("scale", [1e200, 1e-200, 1e-310])
def test_extreme_scales(scale):
    """Catches squares that overflow to NaN or vanish to an error of 0."""
    A, S = pair(8, 9)
    plain, scaled = se.errors(A, S), se.errors(A * scale, S * scale)
    assert scaled.frobenius == pytest.approx(plain.frobenius, rel=1e-6)
    assert scaled.spectral == pytest.approx(plain.spectral, rel=1e-6)


@pytest.mark.parametrize("method", ["exact", "matrix-free"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_kinds_may_differ(dtype, method):
    """Catches two dtypes or two libraries that cannot be compared, and sparse layouts refused."""
    A, S = pair(40, 50)
    S = torch.from_numpy(S).to(dtype)
    expected = se.errors(A, S.double().numpy(), 4, method="exact").spectral
    for sparse in (S, S.to_sparse(), S.requires_grad_()):
        found = se.errors(A.astype(np.float32), sparse, 4, method=method)
        assert found.spectral == pytest.approx(expected, rel=2e-3)


def test_more_than_two_dimensions_and_plain_data():
    """Catches convolutions that are compared slice by slice, and results that JSON cannot hold."""
    A, S = pair(6, 36)
    flat, folded = se.errors(A, S), se.errors(A.reshape(6, 4, 3, 3), S.reshape(6, 4, 3, 3))
    assert flat.to_dict() == folded.to_dict()
    assert json.loads(json.dumps(flat.to_dict()))["spectral"] == flat.spectral


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"original": [[1.0]]}, TypeError, "original: expected a NumPy array"),
        ({"sparse": [[1.0]]}, TypeError, "sparse: expected a NumPy array"),
        ({"sparse": np.ones((4, 3))}, ValueError, r"sparse: .*\(3, 4\); got \(4, 3\)"),
        ({"sparse": np.ones((3, 2, 2))}, ValueError, "sparse: expected the shape of original"),
        ({"original": np.ones(3)}, ValueError, "original: expected two dimensions"),
        ({"original": np.ones((0, 4))}, ValueError, "original: .*none empty"),
        ({"original": np.full((3, 4), np.nan)}, ValueError, "original: expected finite"),
        ({"sparse": np.full((3, 4), np.inf)}, ValueError, "sparse: expected finite"),
        ({"sparse": torch.ones(3, 4) * 1j}, TypeError, "sparse: expected real numbers"),
        ({"rank": 0}, ValueError, "rank: expected at least 1; got 0"),
        ({"rank": 1.5}, TypeError, "rank: expected an integer; got float"),
        ({"method": "fast"}, ValueError, "method: expected one of auto, exact, matrix-free"),
    ],
)
def test_bad_input(arguments, error, message):
    """Catches a mistake that passes, or that comes back as an error of LAPACK."""
    with pytest.raises(error, match=message):
        se.errors(**{"original": np.ones((3, 4)), "sparse": np.ones((3, 4)), **arguments})


@pytest.mark.parametrize("method", ["exact", "matrix-free"])
def test_a_batch_is_its_block_diagonal_matrix(method):
    """Catches the mean of the matrices' errors for the error of all, relative each to its own."""
    pairs = [pair(30, 40, seed) for seed in range(3)]
    A, S = (torch.from_numpy(np.stack(x)) for x in zip(*pairs, strict=True))
    A[1] *= 3
    found = batch_errors(A, S, 4, method=method)
    whole = se.errors(torch.block_diag(*A), torch.block_diag(*S), method="exact")
    assert found.spectral == pytest.approx(whole.spectral, rel=3e-3)
    assert found.frobenius == pytest.approx(whole.frobenius, rel=1e-12)
    assert len(found.singular_values) == len(found.left_angles) == 12
    sigma = np.linalg.svd(A.numpy(), compute_uv=False)[:, :4]
    np.testing.assert_allclose(found.original, sigma.ravel(), rtol=3e-3)


def test_a_batch_of_zeros():
    """Catches 0 / 0 where no matrix of a batch has an entry, and a change from nothing."""
    zero = torch.zeros(2, 3, 4)
    assert batch_errors(zero, zero).spectral == 0.0
    assert batch_errors(zero, zero + 1).frobenius == math.inf


@pytest.mark.parametrize("method", ["exact", "matrix-free"])
def test_values_that_are_zero_but_for_rounding(method):
    """Catches rounding errors of zero values divided by one another: 14 dead rows of 64."""
    A, S = pair(64, 100, 3)
    A[:14] = S[:14] = 0.0
    found = se.errors(A, S, method=method)
    exact = [np.linalg.svd(x, compute_uv=False)[:50] for x in (A, S)]
    np.testing.assert_allclose(
        found.mean_singular_value, np.sum(np.abs(exact[1] / exact[0] - 1)) / 64, rtol=1e-3
    )
    assert (found.singular_values[50:] == 0).all()


def test_blocks_that_were_zero_and_are_no_longer():
    """Catches infinity times nothing, and a first block that speaks for all."""
    zero, some = torch.zeros(3, 4), torch.rand(3, 4, dtype=torch.float64)
    A, S = torch.stack([zero, some]), torch.stack([zero + 0.01, some])
    found = batch_errors(A, S)
    whole = se.errors(torch.block_diag(*A), torch.block_diag(*S), method="exact")
    assert found.spectral == pytest.approx(whole.spectral)
    grown = batch_errors(torch.zeros(2, 3, 4), torch.stack([zero, zero + 1]))
    assert (grown.spectral, grown.frobenius) == (math.inf, math.inf)
