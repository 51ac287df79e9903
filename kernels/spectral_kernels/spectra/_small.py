"""Singular values and vectors of a matrix small enough to be factored whole.

float32 goes through the eigenvalues of the smaller Gram matrix in float64: squaring halves the
digits of float64, and half of them are as many as float32 has, so the values are good to rounding
in float32 (about 1e-8 sigma_1, where a Gram matrix in float32 stops at 2e-4 sigma_1). This is
cheaper than a float32 SVD and, unlike it, a true batch on a GPU. float64 has no wider type, so it
goes to the library's SVD.
"""

import array_api_compat

from spectral_kernels.spectra._arrays import Array, Namespace

#: Rows of a lower triangle that are multiplied at a time: few, so that little is done above it.
_ROWS = 96


def gram(xp: Namespace, A: Array, dtype: object) -> Array:
    """The lower triangle, all that `eigh` reads, of A A^T or A^T A, the smaller, in `dtype`."""
    A = xp.astype(A, dtype, copy=False)
    if A.shape[-2] > A.shape[-1]:
        A = xp.matrix_transpose(A)
    transposed = xp.matrix_transpose(A)
    if not array_api_compat.is_torch_array(A) or A.device.type != "cpu":
        return A @ transposed  # in NumPy by syrk, half the operations; on a GPU one batch
    n = A.shape[-2]
    G = A.new_zeros((*A.shape[:-1], n))
    for first in range(0, n, _ROWS):
        last = min(first + _ROWS, n)
        G[..., first:last, :last] = A[..., first:last, :] @ transposed[..., :last]
    return G


def gram_values(xp: Namespace, A: Array, dtype: object) -> Array:
    """All singular values of A (..., m, n), descending, from the eigenvalues of a Gram matrix."""
    squares = xp.linalg.eigvalsh(gram(xp, A, dtype))
    return xp.flip(xp.sqrt(xp.where(squares > 0, squares, 0.0)), axis=-1)


def values(xp: Namespace, A: Array) -> Array:
    """All singular values of A (..., m, n), descending, good to rounding; in float64."""
    if A.dtype == xp.float32:
        return gram_values(xp, A, xp.float64)
    return xp.linalg.svdvals(A)


def triplets(xp: Namespace, A: Array, rank: int) -> tuple[Array, Array, Array]:
    """The leading U (..., m, rank), S (..., rank), V (..., n, rank) of A, in A's dtype."""
    if A.dtype != xp.float32:
        U, S, Vh = xp.linalg.svd(A, full_matrices=False)
        return U[..., :rank], S[..., :rank], xp.matrix_transpose(Vh)[..., :rank]
    if A.shape[-2] > A.shape[-1]:
        V, S, U = triplets(xp, xp.matrix_transpose(A), rank)
        return U, S, V
    _, vectors = xp.linalg.eigh(gram(xp, A, xp.float64))
    U = xp.flip(vectors, axis=-1)[..., :rank]
    # A^T U has orthogonal columns of lengths S. Those lost in rounding, of values near zero, come
    # out of the QR orthonormal like the others.
    V, R = xp.linalg.qr(xp.matrix_transpose(xp.astype(A, xp.float64)) @ U)
    diagonal = xp.linalg.diagonal(R)
    V = xp.where((diagonal < 0)[..., None, :], -V, V)
    S = xp.sort(xp.abs(diagonal), axis=-1, descending=True)
    return tuple(xp.astype(x, A.dtype) for x in (U, S, V))
