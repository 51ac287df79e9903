"""Leading singular triplets by randomized block Krylov iteration, and whole spectra.

One source for NumPy, CuPy, torch and every other array API library; batches (..., m, n) go through
as batches. float16 and bfloat16 are worked on, and come back, in float32; float64 stays float64.
"""

from typing import Literal, NamedTuple

import numpy as np

from spectral_kernels._validation import positive_integer, require_seed, require_tolerance
from spectral_kernels.reference.stream import stream_id
from spectral_kernels.spectra import _small
from spectral_kernels.spectra._arrays import (
    Array,
    Namespace,
    as_matrices,
    largest_entries,
    namespace,
    test_matrix,
)
from spectral_kernels.spectra._krylov import KrylovSpec, converge, rounding
from spectral_kernels.spectra._operators import Operator, matrix
from spectral_kernels.spectra.precision import full_precision

#: The stream of the test matrices.
SVD_STREAM = stream_id("spectral_kernels.svd")
#: Matrices whose largest entry is between 1 / this and this are not copied to be scaled.
UNSCALED = 2.0**30
#: The relative accuracy asked for where the caller names neither a tolerance nor a depth.
TOLERANCE = 1e-3


class SVDResult(NamedTuple):
    """A ~ U diag(S) Vh, the leading `rank` triplets of each matrix.

    U: (..., m, rank) and Vh: (..., rank, n), orthonormal columns and rows
    S: (..., rank), descending, in the units of A
    error: (..., rank), an estimate of |sigma_i(A) - S_i|, in the units of A
    iterations: the block products with A or A^T that were used; 0 where A was factored whole
    """

    U: Array
    S: Array
    Vh: Array
    error: Array
    iterations: int


def default_blocks(rank: int) -> tuple[int, int]:
    """The columns of the test matrix: at first, and where those are too few.

    Args:
        rank: how many triplets are asked for.

    A block of b columns finds at most b copies of a repeated value, so the wider block has 8
    columns more than the rank. A narrower block takes more products and less time (on a CPU, for
    ranks of 64 to 256 and slow or no decay, 1 to 2 times less), so the first is
    min(rank + 8, max(32, rank // 2)). Under 32 columns the time no longer falls, and with 8 it is
    hard to tell convergence from a pause.

    Returns:
        (first, wider).

    >>> from spectral_kernels.spectra import default_blocks
    >>> default_blocks(10), default_blocks(100)
    ((18, 18), (50, 108))
    """
    wider = rank + 8
    return min(wider, max(32, rank // 2)), wider


def randomized_svd(
    A: Array,
    rank: int,
    *,
    tolerance: float | None = None,
    depth: int | None = None,
    block: int | None = None,
    seed: int = 0,
    stream: int = SVD_STREAM,
    library: Literal["own", "cupy"] = "own",
) -> SVDResult:
    """The leading `rank` singular triplets of A (..., m, n) by randomized block Krylov iteration.

    Args:
        A: dense, of dtype float16, bfloat16, float32 or float64, finite; NumPy, torch, CuPy or
            another library of the array API.
        rank: how many triplets.
        tolerance: stop once every one of these values of every matrix is known to this relative
            accuracy, or to rounding; 1e-3 where neither it nor `depth` is given.
        depth: the most block steps, each a product with A and one with A^T; alone, their number.
        block: columns of the test matrix. With fewer than `rank`, a value repeated more than
            `block` times is found too few times. By default min(rank + 8, max(32, rank // 2));
            rank + 8 with a depth, and where values are found so close together that the first
            block may have been too narrow.
        seed, stream: where in the project's random stream the test matrix lies. It does not depend
            on the batch. The sign of each pair makes <v_i, first column of the test matrix> >= 0
            (for m < n: u_i).
        library: "own", that of A, does the work; "cupy", for a torch tensor on CUDA, has CuPy do it
            in the same memory, on torch's stream and out of torch's pool, and gives tensors back.

    Returns:
        The triplets, an estimate of the error of each value, and the number of products.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came; of a batch with
            NaN or infinity also the index of the first such matrix.

    Where the Krylov space would take up most of min(m, n), the matrix is factored whole, and the
    error is rounding alone. `error` is an estimate from the stagnation of the values (see
    `_krylov.Convergence`), not a bound that holds with certainty: no method that has seen A only
    through a few products has one. It may be too small where more values than a block has columns
    lie within a few per cent of each other, and apart by more than the tolerance.

    Memory beside A: the Krylov space, m + n numbers for each column of each block, and a few blocks
    more. A float16 or bfloat16 A is widened to float32 a panel of rows at a time.

    Source: Musco and Musco, NeurIPS 2015, algorithm 2; Tropp and Webber 2023.

    >>> import numpy as np
    >>> from spectral_kernels.spectra import randomized_svd
    >>> found = randomized_svd(np.diag([5.0, 4.0, 3.0, 2.0]), 2)
    >>> found.S.round(6).tolist(), found.U.shape, found.Vh.shape
    ([5.0, 4.0], (4, 2), (2, 4))
    """
    if library == "cupy":
        from spectral_kernels.spectra._cupy import lent_to_cupy, returned  # noqa: PLC0415 (torch's side)

        with lent_to_cupy(A) as lent:
            found = randomized_svd(
                lent, rank, tolerance=tolerance, depth=depth, block=block, seed=seed, stream=stream
            )
            U, S, Vh, error = (returned(part) for part in found[:4])
            return SVDResult(U, S, Vh, error, found.iterations)
    if library != "own":
        raise ValueError(f"library: expected 'own' or 'cupy'; got {library!r}")
    xp = namespace(A, "A")
    A = as_matrices(xp, A, "A", widen=False)
    m, n = A.shape[-2:]
    columns = min(m, n)
    rank = positive_integer(rank, "rank", at_most=columns, meaning="min(m, n)")
    if block is None:
        block, wider = default_blocks(rank)
        block = block if depth is None else wider
    else:
        block = wider = positive_integer(block, "block")
    block, wider = min(block, columns), min(wider, columns)
    if depth is not None:
        depth = positive_integer(depth, "depth")
        if depth * block < rank:
            raise ValueError(
                f"depth: expected depth * block >= rank = {rank}; got {depth} * {block}"
            )
    elif tolerance is None:
        tolerance = TOLERANCE
    if tolerance is not None:
        tolerance = require_tolerance(tolerance)
    require_seed(seed, stream)
    with full_precision(xp):
        operator = matrix(xp, A, largest_entries(xp, A, "A")).tall()
        spec = KrylovSpec(
            rank=rank,
            tolerance=tolerance,
            depth=depth,
            block=block,
            wider=wider,
            seed=seed,
            stream=stream,
        )
        U, S, V, error, iterations = _leading(operator, spec)
        first = test_matrix(xp, (columns, 1), seed, stream, column_offset=0, like=operator.like)
        negative = xp.sum(V * first, axis=-2, keepdims=True) < 0
        U, V = (xp.where(negative, -X, X) for X in (U, V))
        S, error = (operator.unscale(x) for x in (S, error))
    if m < n:
        U, V = V, U
    return SVDResult(U, S, xp.matrix_transpose(V), error, iterations)


def _leading(operator: Operator, spec: KrylovSpec) -> tuple[Array, Array, Array, Array, int]:
    """U, S, V, error and iterations for an operator with m >= n, at unit scale."""
    xp, dtype, rank = operator.xp, operator.like.dtype, spec.rank
    found = converge(operator, spec)
    if found is None:
        U, S, V = _small.triplets(xp, operator.dense(), rank)
        return U, S, V, rounding(S, operator), 0
    space, state = found
    U, S, V = _small.triplets(xp, space.T, rank)
    return space.U @ U, S, space.V @ V, xp.astype(state.error, dtype), space.products


def singular_values(A: Array, method: Literal["auto", "gram", "svd"] = "auto") -> Array:
    """All singular values of A (..., m, n), descending: (..., min(m, n)), in working precision.

    Args:
        A: as `randomized_svd` takes it.
        method: "gram", the square roots of the eigenvalues of the smaller of A^T A and A A^T in
            working precision: the fastest, good to sqrt(eps) sigma_1 (3e-4 sigma_1 in float32,
            1.5e-8 sigma_1 in float64), so small values drown;
            "svd", the library's `svdvals`: good to rounding, eps sigma_1 times a small factor;
            "auto": good to rounding at the least cost: for float32 the Gram matrix in float64, for
            float64 the library's `svdvals`.

    Returns:
        The values, in float32, or in float64 for float64. Held meanwhile are the Gram matrix of the
        smaller side, in float64 under "auto", and a float32 copy of float16 and bfloat16.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.

    >>> import numpy as np
    >>> from spectral_kernels.spectra import singular_values
    >>> singular_values(np.array([[3.0, 0.0], [0.0, 4.0]])).tolist()
    [4.0, 3.0]
    """
    if method not in ("auto", "gram", "svd"):
        raise ValueError(f"method: expected 'auto', 'gram' or 'svd'; got {method!r}")
    xp = namespace(A, "A")
    A = as_matrices(xp, A, "A")
    with full_precision(xp):
        largest = largest_entries(xp, A, "A")
        if not np.all((largest >= 1 / UNSCALED) & (largest <= UNSCALED)):
            operator = matrix(xp, A, largest)
            return operator.unscale(_all_values(xp, A * operator.first * operator.second, method))
        return _all_values(xp, A, method)


def _all_values(xp: Namespace, A: Array, method: str) -> Array:
    """`singular_values` of matrices whose squares are far from the ends of their range."""
    if method == "auto":
        S = _small.values(xp, A)
    elif method == "gram":
        S = _small.gram_values(xp, A, A.dtype)
    else:
        S = xp.linalg.svdvals(A)
    return xp.astype(S, A.dtype)
