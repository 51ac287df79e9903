"""Spectral norms, ||A||_2 and ||A - S||_2, by block Golub-Kahan on products alone.

The difference of a matrix and its sparsification is never formed: x -> A x - S x needs no memory
beyond a few blocks of vectors, and a sparse S stays sparse.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import array_api_compat
import numpy as np

from spectral_kernels._validation import require_seed, require_tolerance
from spectral_kernels.reference.stream import stream_id
from spectral_kernels.spectra import _small
from spectral_kernels.spectra._arrays import (
    Array,
    Namespace,
    as_matrices,
    largest_entries,
    namespace,
)
from spectral_kernels.spectra._krylov import KrylovSpec, converge, rounding
from spectral_kernels.spectra._operators import Operator, matrix
from spectral_kernels.spectra._sparse import is_sparse, sparse_products
from spectral_kernels.spectra.precision import full_precision

#: The stream of the test matrices.
STREAM = stream_id("spectral_kernels.norms")
#: Columns of the test matrix; and from so many entries on, where the space is to hold less than 5 %
#: of the matrix. Independent entries, 8192 x 4096, tolerance 1e-3: 26 products with 8 columns, 32
#: with 4, in 1.25 times the processor time, and the same accuracy.
BLOCK, SMALL_BLOCK, LARGE = 8, 4, 1 << 24


class NormEstimate(NamedTuple):
    """A spectral norm, found from below.

    value: (...,), the norm of each matrix, in the units of A
    error: (...,), an estimate of how much larger the norm is
    iterations: the block products that were used; 0 where the matrix was factored whole
    """

    value: Array
    error: Array
    iterations: int


def spectral_norm(
    A: Array, *, tolerance: float = 1e-3, seed: int = 0, stream: int = STREAM
) -> NormEstimate:
    """||A||_2 of A (..., m, n), to a relative `tolerance` (or to rounding).

    Args:
        A: dense, of an array library, dtype and shape that `randomized_svd` takes.
        tolerance: the relative accuracy at which to stop.
        seed, stream: where in the project's random stream the test matrix lies.

    Returns:
        The norm of each matrix, found from below, and an estimate of its error.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.

    >>> import numpy as np
    >>> from spectral_kernels.spectra import spectral_norm
    >>> round(float(spectral_norm(np.diag([3.0, -5.0, 1.0])).value), 6)
    5.0
    """
    xp = namespace(A, "A")
    A = as_matrices(xp, A, "A", widen=False)
    require_seed(seed, stream)
    tolerance = require_tolerance(tolerance)
    with full_precision(xp):
        operator = matrix(xp, A, largest_entries(xp, A, "A"))
        return _estimate(operator, tolerance, seed, stream)


def spectral_error(
    A: Array, S: Any, *, tolerance: float = 1e-3, seed: int = 0, stream: int = STREAM
) -> NormEstimate:
    """||A - S||_2, to a relative `tolerance` (or to rounding), from products with A and with S.

    Args:
        A: dense (..., m, n), as `spectral_norm` takes it.
        S: of A's shape; dense and of A's library, or, for a single matrix, sparse: a sparse tensor
            of torch (CSR, CSC or COO), a matrix of scipy.sparse beside NumPy or of
            cupyx.scipy.sparse beside CuPy.
        tolerance, seed, stream: as `spectral_norm` takes them.

    Returns:
        The norm of each difference, and an estimate of its error. Rounding is relative to
        ||A||_2, as in any difference. Float16 and bfloat16 are held once more, in float32.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.

    >>> import numpy as np
    >>> from spectral_kernels.spectra import spectral_error
    >>> A = np.diag([3.0, 2.0, 1.0])
    >>> round(float(spectral_error(A, np.diag([3.0, 2.0, 0.0])).value), 6)
    1.0
    """
    xp = namespace(A, "A")
    A = as_matrices(xp, A, "A")
    if not is_sparse(S) and not array_api_compat.is_array_api_obj(S):
        raise TypeError(
            f"S: expected a dense or sparse matrix; got {type(S).__module__}.{type(S).__qualname__}"
        )
    if tuple(S.shape) != tuple(A.shape):
        raise ValueError(f"S: expected the shape of A, {tuple(A.shape)}; got {tuple(S.shape)}")
    require_seed(seed, stream)
    tolerance = require_tolerance(tolerance)
    with full_precision(xp):
        if is_sparse(S):
            forward, adjoint, largest = sparse_products(xp, S, A, "S")
        else:
            A, S = _same_precision(xp, A, S)
            forward, adjoint = S.__matmul__, xp.matrix_transpose(S).__matmul__
            largest = largest_entries(xp, S, "S")
        whole = matrix(xp, A, np.maximum(largest, largest_entries(xp, A, "A")))
        rough = _values(whole, None, 1, seed, stream)[0]
        difference = replace(
            whole,
            forward=lambda V: whole.forward(V) - forward(V),
            adjoint=lambda U: whole.adjoint(U) - adjoint(U),
            noise=rough,
        )
        return _estimate(difference, tolerance, seed, stream)


def _same_precision(xp: Namespace, A: Array, S: Array) -> tuple[Array, Array]:
    """Dense A and S, both float64 where one of them is."""
    if namespace(S, "S") is not xp:
        raise TypeError(
            f"S: expected an array of the library of A, {xp.__name__}; got "
            f"{type(S).__module__}.{type(S).__qualname__}"
        )
    S = as_matrices(xp, S, "S")
    common = xp.result_type(A, S)
    return xp.astype(A, common, copy=False), xp.astype(S, common, copy=False)


def _values(
    operator: Operator, tolerance: float | None, depth: int | None, seed: int, stream: int
) -> tuple[Array, Array, int]:
    """The norm (..., 1), its error (..., 1) and the products used, at unit scale."""
    operator = operator.tall()
    m, n = operator.shape[-2:]
    block = min(BLOCK if m * n < LARGE else SMALL_BLOCK, m, n)
    spec = KrylovSpec(
        rank=1,
        tolerance=tolerance,
        depth=depth,
        block=block,
        wider=block,
        seed=seed,
        stream=stream,
    )
    found = converge(operator, spec)
    if found is None:
        values = _small.values(operator.xp, operator.dense())[..., :1]
        return values, rounding(values, operator), 0
    space, state = found
    return state.values, state.error, space.products


def _estimate(operator: Operator, tolerance: float, seed: int, stream: int) -> NormEstimate:
    """`_values` in the units and the precision of A."""
    value, error, iterations = _values(operator, tolerance, None, seed, stream)
    dtype = operator.like.dtype
    value, error = (operator.unscale(operator.xp.astype(x, dtype))[..., 0] for x in (value, error))
    return NormEstimate(value, error, iterations)
