"""One matrix: its histogram of scores, and the call that scores, solves, draws and writes."""

from typing import Any

from spectral_kernels.backends.protocol import Int64
from spectral_kernels.call.arguments import check_weight, make_scoring
from spectral_kernels.call.result import Sparse
from spectral_kernels.call.run import Request, check_draw, check_shared, run
from spectral_kernels.reference.patterns import pattern_sparsity


def histogram(
    weight: Any,
    *,
    score: str = "magnitude",
    factors: tuple[Any, Any] | None = None,
    mixture: tuple[float, float] = (0.0, 0.0),
) -> tuple[Int64, Int64]:
    """How many scores a matrix has in each of 8192 bins; histograms of shards merge by addition.

    A bin is told by the leading 13 bits of a float32 score; see `reference.budget`. Scores of 0 are
    left out.

    Args:
        weight: (m, n) or more dimensions, seen as (shape[0], -1); NumPy, torch or CuPy.
        score, factors, mixture: as `sparsify` takes them.

    Returns:
        (count, low), int64 (8192,) each, on the host: the scores of a bin, and the sum of their
        18 low bits.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.

    >>> import numpy as np
    >>> from spectral_kernels import histogram
    >>> count, low = histogram(np.array([[1.0, -1.0], [0.0, 8.0]]))
    >>> count[count > 0].tolist()
    [2, 1]
    """
    backend = check_weight(weight)
    A = backend.matrix(weight)
    return backend.histogram(A, make_scoring(backend, A, score, factors, mixture))


def sparsify(
    weight: Any,
    *,
    sparsity: float | None = None,
    law: str = "threshold",
    law_parameter: float | None = None,
    rescale: bool = False,
    score: str = "magnitude",
    factors: tuple[Any, Any] | None = None,
    mixture: tuple[float, float] = (0.0, 0.0),
    row: Any = None,
    column: Any = None,
    group: str = "tensor",
    pattern: str | None = None,
    seed: int = 0,
    stream: int = 0,
    row_offset: int = 0,
    column_offset: int = 0,
    check: bool = True,
) -> Sparse:
    """A sparse matrix of the same kind, dtype and shape, drawn by `law` from the scores.

    Args:
        weight: (m, n) or more dimensions, seen as (shape[0], -1); NumPy, torch or CuPy.
        sparsity: fraction of zeros in [0, 1); K = size - round(sparsity * size) entries are kept,
            exactly under "threshold", on average under the other laws. Under a pattern "N:M" it
            may be left out.
        law, law_parameter: the law by which entries are kept, one of `LAW_NAMES`, and its
            parameter; formulas and sources are in `reference.laws`.
        rescale: divide a kept entry by its probability. The result is then exactly unbiased in
            every entry of probability 2^-24 or more; below that, and where "trimmed-l2" trims, it
            is 0.
        score: what an entry is worth, one of `SCORE_NAMES`; see `reference.laws.Base`.
        factors: left (m, k) and right (k, n), whose product is the low rank of the score.
        mixture: the weights (b, a) of score "mixture".
        row, column: float32 (m,) and (n,) factors of the score, or None.
        group: "tensor", or "row" to give every row its own budget of n - round(sparsity * n).
        pattern: None, "N:M", or blocks "RxC", of which K are kept; see `reference.patterns`. On a
            device a call with a pattern waits, whatever `check`, and cannot be captured.
        seed, stream, row_offset, column_offset: where the draws lie, see `reference.stream`.
        check: for a weight on a device, whether to wait for it once and raise on NaN, infinity and
            overflow now. If not, or while a CUDA graph is captured, they are raised when nnz or c
            is read. Vectors and factors must then lie on the device already.

    Returns:
        The sparse weight, its number of nonzeros, and the constant of the law.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.

    >>> import numpy as np
    >>> from spectral_kernels import sparsify
    >>> A = np.array([[3.0, -1.0], [0.5, 2.0]], np.float32)
    >>> sparsify(A, sparsity=0.5).weight.tolist()
    [[3.0, 0.0], [0.0, 2.0]]
    >>> sparsify(A, sparsity=0.5, law="l1", rescale=True, seed=1).weight.dtype
    dtype('float32')
    """
    backend = check_weight(weight)
    shared = check_shared(law, law_parameter, rescale, group, pattern, check)
    request = Request(
        backend,
        weight,
        pattern_sparsity(pattern, sparsity),
        check_draw(seed, stream, row_offset, column_offset),
        score,
        factors,
        mixture,
        row,
        column,
    )
    return run([request], shared)[0]
