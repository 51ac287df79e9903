"""The density of all singular values, of a matrix too large to factor, by Lanczos quadrature.

A Golub-Kahan bidiagonalization of k steps from a random unit vector v gives the k-point Gauss
quadrature of the spectral measure of A^T A that v sees; its mean over random v is the density of
the singular values. The whole spectrum for the price of a few dozen products with A, resolved to
about sigma_1 / k; A^T A is not formed.

Source: Chen, Trogdon, Ubaru, "Randomized matrix-free quadrature: unified and uniform bounds for
stochastic Lanczos quadrature and the kernel polynomial method", arXiv 2204.01941.
"""

import math
from typing import NamedTuple

import array_api_compat

from spectral_kernels._validation import positive_integer, require_seed
from spectral_kernels.reference.stream import stream_id
from spectral_kernels.spectra._arrays import (
    Array,
    Namespace,
    as_matrices,
    largest_entries,
    namespace,
    test_matrix,
)
from spectral_kernels.spectra._operators import Operator, matrix
from spectral_kernels.spectra.precision import full_precision

#: The stream of the start vectors.
STREAM = stream_id("spectral_kernels.density")


class SpectralDensity(NamedTuple):
    """A discrete distribution near that of the min(m, n) singular values of each matrix.

    nodes: (..., k), in the units of A, in no order
    weights: (..., k), not negative, of sum 1
    """

    nodes: Array
    weights: Array


def spectral_density(
    A: Array, *, steps: int = 48, probes: int = 8, seed: int = 0, stream: int = STREAM
) -> SpectralDensity:
    """The density of all singular values of A (..., m, n) by stochastic Lanczos quadrature.

    Args:
        A: dense, of an array library, dtype and shape that `randomized_svd` takes.
        steps: products with A and with A^T for each start vector; the resolution is
            sigma_1 / steps.
        probes: start vectors; the noise of a share is about 1 / sqrt(probes min(m, n)).
        seed, stream: where in the project's random stream the start vectors lie.

    Returns:
        A discrete distribution of probes * min(steps, m, n) nodes for each matrix.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.

    Source: Chen, Trogdon, Ubaru, arXiv 2204.01941.

    >>> import numpy as np
    >>> from spectral_kernels.spectra import spectral_density
    >>> density = spectral_density(np.diag([3.0, 2.0, 2.0, 1.0]), probes=2)
    >>> density.nodes.shape, round(float(density.weights.sum()), 6)
    ((8,), 1.0)
    """
    xp = namespace(A, "A")
    A = as_matrices(xp, A, "A")
    steps = min(positive_integer(steps, "steps"), *A.shape[-2:])
    probes = positive_integer(probes, "probes")
    require_seed(seed, stream)
    with full_precision(xp):
        operator = matrix(xp, A, largest_entries(xp, A, "A")).tall()
        start = test_matrix(xp, (operator.shape[-1], probes), seed, stream, column_offset=0, like=A)
        start = xp.broadcast_to(start, (*operator.shape[:-2], *start.shape))
        B = bidiagonalise(operator, start, steps)
        squares, vectors = xp.linalg.eigh(xp.matrix_transpose(B) @ B)
        nodes = xp.sqrt(xp.where(squares > 0, squares, 0.0))
        weights = vectors[..., 0, :] ** 2 / probes
        nodes, weights = (
            xp.reshape(xp.astype(x, A.dtype), (*A.shape[:-2], -1)) for x in (nodes, weights)
        )
        return SpectralDensity(operator.unscale(nodes), weights)


def bidiagonalise(operator: Operator, start: Array, steps: int) -> Array:
    """The upper bidiagonal B (..., probes, steps, steps), float64, for each column of `start`.

    start: (..., n, probes), m >= n

    The vectors on the short side are kept orthogonal to all before them; those on the long side
    then stay orthogonal enough by themselves (Simon and Zha, SIAM J. Sci. Comput. 21, 2000). A
    remainder at the level of rounding ends a probe, the rest of its B being zero: the nodes of the
    rest have no weight.
    """
    xp, (m, n) = operator.xp, operator.shape[-2:]
    noise = math.sqrt(m + n) * float(xp.finfo(start.dtype).eps)
    v, _ = _normalise(xp, start, 0.0)
    u, beta = xp.zeros_like(operator @ v), xp.zeros_like(v[..., :1, :])
    largest = beta
    # One row of v for each probe: (..., probes, j, n) after j steps.
    basis = xp.matrix_transpose(v)[..., None, :]
    diagonal, above = [], []
    for _ in range(steps):
        u, alpha = _normalise(xp, operator @ v - u * beta, noise * largest)
        rows = xp.matrix_transpose(operator.T @ u - v * alpha)[..., None]
        for _ in range(2):
            rows = rows - xp.matrix_transpose(basis) @ (basis @ rows)
        largest = xp.maximum(largest, alpha)
        v, beta = _normalise(xp, xp.matrix_transpose(rows[..., 0]), noise * largest)
        largest = xp.maximum(largest, beta)
        basis = xp.concat([basis, xp.matrix_transpose(v)[..., None, :]], axis=-2)
        diagonal.append(alpha)
        above.append(beta)
    coefficients = (
        xp.astype(xp.matrix_transpose(xp.concat(x, axis=-2)), xp.float64) for x in (diagonal, above)
    )
    alpha, beta = (x[..., :, None] for x in coefficients)
    device = array_api_compat.device(start)
    identity, shifted = (xp.eye(steps, k=k, dtype=xp.float64, device=device) for k in (0, 1))
    return alpha * identity + beta * shifted


def _normalise(xp: Namespace, W: Array, noise: Array | float) -> tuple[Array, Array]:
    """The columns of W (..., n, b) at unit length and their lengths, or zeros up to `noise`."""
    norms = xp.sqrt(xp.sum(W * W, axis=-2, keepdims=True))
    kept = norms > noise
    return (
        xp.where(kept, W / xp.where(kept, norms, 1.0), 0.0),
        xp.where(kept, norms, 0.0),
    )
