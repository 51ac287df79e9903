"""One pipeline for every method: score, budget, draw, value, on whatever backend the array has."""

from typing import Any

import numpy as np

from spectral_kernels._validation import word
from spectral_kernels.backends.deferred import Flaws
from spectral_kernels.backends.protocol import Backend, Draw, Int64, Matrix, Scoring
from spectral_kernels.call.arguments import (
    check_vector,
    check_weight,
    entries_to_keep,
    make_scoring,
)
from spectral_kernels.call.pipeline import Pipeline
from spectral_kernels.call.result import Sparse
from spectral_kernels.reference.laws import GROUP_NAMES, Law, named_law
from spectral_kernels.reference.patterns import (
    Blocks,
    check_pattern,
    parse_pattern,
    pattern_sparsity,
    require_patterns,
)

#: Longer rows are solved one by one, as tensors: their scores would not stay in a core's cache.
LONGEST_CACHED_ROW = 1 << 16
#: The least of the normal numbers of float32.
LEAST_LARGEST = 2.0**-126
#: The counter of the stream holds 32 bits of column / 4.
LAST_COLUMN = 1 << 34


def histogram(
    weight: Any,
    *,
    score: str = "magnitude",
    factors: tuple[Any, Any] | None = None,
    mixture: tuple[float, float] = (0.0, 0.0),
) -> tuple[Int64, Int64]:
    """(count, low), int64 (8192,) each, of the scores; those of shards merge by addition.

    See `budget`; `oracle.frobenius_curve` reads the layer's error against sparsity off it.
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
        law, law_parameter: see `laws`. rescale: divide a kept entry by its probability, which
            makes the result exactly unbiased in every entry of probability 2^-24 or more; below
            that, and where "trimmed-l2" trims, it is 0.
        score, factors: see `laws.Base`; left (m, k) and right (k, n) of B. mixture: (b, a).
        row, column: float32 (m,) and (n,) factors of the score, or None.
        group: "tensor", or "row" to give every row its own budget of n - round(sparsity * n).
        pattern: None, "N:M" or blocks "RxC", see `patterns`; of blocks, K counts blocks. On a
            device a pattern waits for it, whatever `check`, and cannot be captured.
        seed, stream, row_offset, column_offset: where the draws lie, see `stream`.
        check: of a weight on a device, whether to wait for it once and refuse NaN, infinity and
            overflow now. If not, or while a CUDA graph is captured, they are refused when nnz or c
            is read. Vectors and factors must then lie on the device already.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.
    """
    backend = check_weight(weight)
    if not isinstance(check, bool):
        raise TypeError(f"check: expected a bool; got {check!r}")
    if group not in GROUP_NAMES:
        raise ValueError(f"group: expected one of {', '.join(GROUP_NAMES)}; got {group!r}")
    solved_law = named_law(law, law_parameter)
    chosen = None if pattern is None else parse_pattern(pattern)
    sparsity = pattern_sparsity(pattern, sparsity)
    A = backend.matrix(weight)
    per_row = group == "row"
    budget = entries_to_keep(A.n if per_row else A.size, sparsity)
    draw = Draw(
        word(seed, "seed", 64),
        word(stream, "stream", 32),
        word(row_offset, "row_offset", 63),
        word(column_offset, "column_offset", 34),
    )
    if not isinstance(rescale, bool):
        raise TypeError(f"rescale: expected a bool; got {rescale!r}")
    if draw.column + A.n > LAST_COLUMN:
        raise ValueError(
            f"column_offset: expected columns under 2^34; got {draw.column} + {A.n} columns"
        )
    if chosen is not None:
        check_pattern(chosen, A, solved_law, draw)
        if backend.captured():
            raise ValueError(f"pattern: expected None in a CUDA graph's capture; got {pattern!r}")
    # The histogram finds what is not finite, unless B hides it or the row sums trip over it first.
    hidden = score != "magnitude" or solved_law.row_weights != "none"
    flaws = Flaws()
    if hidden:
        flaws.add(
            backend.not_finite(A),
            "weight: expected finite entries that fit float32; got {} that are NaN or infinite",
        )
    if A.dtype == "float64" and budget < (A.n if per_row else A.size):
        flaws.add(
            _too_small(A, per_row),
            "weight: expected a largest entry of 2^-126 or more, since entries are scored in "
            "float32; got {} groups under it; multiply them by a power of two first",
        )
    pipeline = _pipeline(backend, solved_law, rescale, budget, flaws)
    if solved_law.row_weights != "none":
        own = pipeline.row_weights(A, budget * A.m if per_row else budget)
        row = own if row is None else own * check_vector(backend, row, "row", A.m, flaws)
    scoring = make_scoring(backend, A, score, factors, mixture, row, column, flaws)
    result = backend.empty_like(weight)
    out = backend.matrix(result)
    if isinstance(chosen, Blocks):
        nnz, cs = _keep_blocks(backend, A, scoring, chosen, sparsity, group, out)
    elif chosen is not None:
        host = Pipeline(backend, solved_law, rescale, budget)
        nnz, cs = host.run_groups(A, scoring, chosen, draw, out)
    elif per_row and A.n > LONGEST_CACHED_ROW:
        nnz, cs = _run_rows_one_by_one(pipeline, A, scoring, draw, out)
    elif per_row:
        nnz, cs = pipeline.run_rows(A, scoring, draw, out)
    else:
        nnz, cs = pipeline.run(A, scoring, draw, out)
    if check and not backend.captured():
        flaws.settle()
    return Sparse(result, nnz, cs, flaws)


def _keep_blocks(
    backend: Backend, A: Matrix, scoring: Scoring, blocks: Blocks, sparsity: float | None,
    group: str, out: Matrix,
) -> tuple[Any, Any]:  # fmt: skip
    """The blocks of largest score: the threshold of a matrix with an entry for each block."""
    operations = require_patterns(backend)
    scores = operations.block_scores(A, scoring, blocks)
    kept = sparsify(scores, sparsity=sparsity, group=group)
    return operations.keep_blocks(A, blocks, kept.weight, out), np.array([kept.c])


def _too_small(A: Matrix, per_row: bool) -> Any:
    """How many groups have their largest entry under the normal numbers of float32, and not 0."""
    import array_api_compat  # noqa: PLC0415 (all else here does without)

    entries = A.storage.reshape(A.m if per_row else 1, -1)
    xp = array_api_compat.array_namespace(entries)

    def largest(some: Any) -> Any:
        return xp.maximum(xp.max(some, axis=1), -xp.min(some, axis=1))

    if isinstance(entries, np.ndarray):
        # One entry that is large enough settles its group, and is found soon.
        entries = entries[largest(entries[:, :64]) < LEAST_LARGEST]
        if entries.size == 0:
            return 0
    found = largest(entries)
    count = xp.sum((found > 0.0) & (found < LEAST_LARGEST))
    return int(count) if isinstance(count, np.generic) else count


def _pipeline(backend: Backend, law: Law, rescale: bool, budget: int, flaws: Flaws) -> Any:
    """The stages after the score: on the device for one, solved on the host for the other."""
    if backend.name != "gpu":
        return Pipeline(backend, law, rescale, budget)
    from spectral_kernels.backends.gpu.pipeline import DevicePipeline  # noqa: PLC0415 (Triton may be missing)

    return DevicePipeline(backend, law, rescale, budget, flaws)  # type: ignore[arg-type]


def _run_rows_one_by_one(
    pipeline: Any, A: Matrix, scoring: Scoring, draw: Draw, out: Matrix
) -> tuple[Any, Any]:
    """As `run_rows`, for rows too long to be solved in a core's cache."""
    nnz, constants = 0, []
    for i in range(A.m):
        one = slice(i, i + 1)
        part = Scoring(
            scoring.base,
            None if scoring.left is None else scoring.left[one],
            scoring.right,
            scoring.weights,
            None if scoring.row is None else scoring.row[one],
            scoring.column,
        )
        here = Draw(draw.seed, draw.stream, draw.row + i, draw.column)
        more, c = pipeline.run(_row(A, i), part, here, _row(out, i))
        nnz += more
        constants.append(c)
    return nnz, lambda: np.concatenate([c() if callable(c) else c for c in constants])


def _row(A: Matrix, i: int) -> Matrix:
    return Matrix(A.storage[i * A.n : (i + 1) * A.n], 1, A.n, A.dtype)
