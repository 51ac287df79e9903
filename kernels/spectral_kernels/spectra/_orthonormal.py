"""Orthonormal blocks out of matrix products alone: CholeskyQR with a shift, then Householder QR.

A batched Householder QR is a loop over matrices on a GPU; a Gram matrix, its Cholesky factor and a
triangular inverse are real batches. One CholeskyQR pass squares the condition number, so passes
are repeated until the Gram matrix that goes in is already near the identity: two for an ordinary
block (CholeskyQR2), three or four, the first with a shift, for an ill-conditioned one (shifted
CholeskyQR3). A block that is still not orthonormal is nearly rank deficient in working precision;
it goes to Householder QR, and fresh random columns replace its dependent ones.

Sources: Yamamoto, Nakatsukasa, Yanagisawa, Fukaya, "Roundoff error analysis of the CholeskyQR2
algorithm", ETNA 44 (2015); Fukaya, Kannan, Nakatsukasa, Yamamoto, Yanagisawa, "Shifted Cholesky QR
for computing the QR factorization of ill-conditioned matrices", SIAM J. Sci. Comput. 42 (2020).
"""

from collections.abc import Callable

import array_api_compat

from spectral_kernels.spectra._arrays import Array, Namespace

#: A Gram matrix this near the identity (Frobenius norm) leaves orthonormal columns after one pass.
NEAR_IDENTITY = 0.5
PASSES = 4


def reject(xp: Namespace, W: Array, basis: Array | None) -> Array:
    """W less its projection on the orthonormal columns of `basis`."""
    return W if basis is None else W - basis @ (xp.matrix_transpose(basis) @ W)


def cholesky_pass(xp: Namespace, W: Array) -> tuple[Array, Array]:
    """W (..., n, b) times the inverse of its Cholesky factor, and how far W^T W was from I.

    The shift enters wherever W^T W is not near the identity, so that the factorization cannot
    fail (which libraries report in ways of their own): it is far above the rounding of the Gram
    matrix of the columns at unit length, which grows with their length n.
    """
    n, b = W.shape[-2:]
    identity = xp.eye(b, dtype=W.dtype, device=array_api_compat.device(W))
    gram = xp.matrix_transpose(W) @ W
    norms = xp.sqrt(xp.linalg.diagonal(gram))
    scale = xp.where(norms > 0, 1 / xp.where(norms > 0, norms, 1.0), 0.0)
    distance = xp.linalg.matrix_norm(gram - identity)
    gram = gram * scale[..., :, None] * scale[..., None, :]
    shift = xp.astype(distance > NEAR_IDENTITY, W.dtype) * (10 * (n + b) * xp.finfo(W.dtype).eps)
    lower = xp.linalg.cholesky(gram + shift[..., None, None] * identity)
    return W @ (scale[..., :, None] * xp.matrix_transpose(xp.linalg.inv(lower))), distance


def householder(xp: Namespace, W: Array, basis: Array | None, spare: Callable[[], Array]) -> Array:
    """An orthonormal basis, orthogonal to `basis`, of the columns of a rank-deficient W."""
    _, R = xp.linalg.qr(W)
    pivots = xp.abs(xp.linalg.diagonal(R))
    dependent = pivots <= xp.finfo(W.dtype).eps * xp.max(pivots, axis=-1, keepdims=True)
    # The others span what W spans; a dependent column of Q may not be replaced, since later columns
    # of W lean on it.
    Q = xp.where(dependent[..., None, :], spare(), W)
    for _ in range(3):
        Q, _ = xp.linalg.qr(reject(xp, Q, basis))
    return Q


def orthonormalise(
    xp: Namespace, W: Array, basis: Array | None, spare: Callable[[], Array]
) -> tuple[Array, Array]:
    """Q (..., n, b), R (..., b, b) with W = basis (basis^T W) + Q R up to rounding.

    Q^T Q = I and basis^T Q = 0 in working precision whatever the rank of W. `spare()` gives n x b
    random columns, one for each direction that W lacks. R is taken as Q^T W, not as the product
    of the Cholesky factors, whose errors grow with the condition of W; it need not be triangular.
    """
    Q = W = reject(xp, W, basis)
    for i in range(PASSES):
        # Twice is enough (Kahan, Parlett): the next projection removes what the scaling of a small
        # remainder has brought up. If it removes much, W^T W is far from I, and there is another.
        Q, distance = cholesky_pass(xp, Q if i == 0 else reject(xp, Q, basis))
        if not xp.any(distance > NEAR_IDENTITY):
            break
    else:
        Q = householder(xp, W, basis, spare)
    return Q, xp.matrix_transpose(Q) @ W
