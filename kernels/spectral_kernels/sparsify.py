"""One pipeline for every method: score, budget, draw, value, on whatever backend the array has."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectral_kernels import budget as bg
from spectral_kernels import solver
from spectral_kernels._validation import word
from spectral_kernels.backend import (
    DTYPES,
    Backend,
    Draw,
    Int64,
    LawTable,
    Matrix,
    Scoring,
    Thresholds,
    backend_for,
)
from spectral_kernels.flaws import Flaws
from spectral_kernels.laws import (
    BASES,
    GROUP_NAMES,
    SCORE_NAMES,
    Base,
    Law,
    Shape,
    am07_constant,
    named_law,
)
from spectral_kernels.patterns import (
    NM,
    Blocks,
    check_pattern,
    parse_pattern,
    pattern_sparsity,
    require_patterns,
)
from spectral_kernels.rows import bernstein_row_weights, row_l1_weights
from spectral_kernels.stream import UNIT

#: Longer rows are solved one by one, as tensors: their scores would not stay in a core's cache.
LONGEST_CACHED_ROW = 1 << 16
#: The counter of the stream holds 32 bits of column / 4.
LAST_COLUMN = 1 << 34


class Sparse:
    """What `sparsify` made.

    weight: same kind, dtype and shape as the input. nnz: its number of nonzeros.
    c: of p = min(1, c g(s)), the median over rows where each row is a group; the threshold itself
    where nothing is drawn. g is s or s^2; for "hybrid" and "am07" that of `laws`, c in terms of s.
    nan where N of every M are kept, each group by its own; of blocks the threshold of their scores.

    From a device, nnz and c are read when they are asked for, which waits for it; what `check`
    left unread is raised then.
    """

    def __init__(self, weight: Any, nnz: Any, c: Any, flaws: Flaws | None = None) -> None:
        self.weight = weight
        self._nnz, self._c = nnz, c
        self._flaws = flaws or Flaws()

    def check(self) -> None:
        """Wait for the device, and refuse what `check=False` let pass: see `sparsify`."""
        self._flaws.settle()

    @property
    def nnz(self) -> int:
        """Number of nonzeros."""
        self._flaws.settle()
        return int(self._nnz)

    @property
    def c(self) -> float:
        """The constant of the law."""
        self._flaws.settle()
        return float(np.median(self._c() if callable(self._c) else self._c))

    def __repr__(self) -> str:
        """The shape alone: to read the counts would wait for the device."""
        return f"Sparse(weight of shape {tuple(self.weight.shape)} and {self.weight.dtype})"


def check_weight(weight: Any, argument: str = "weight") -> Backend:
    """The backend of an array that can be sparsified.

    Raises:
        TypeError: not an array of a known kind, or a dtype that is not one of `DTYPES`.
        ValueError: fewer than two dimensions, or empty.
    """
    backend = backend_for(weight, argument)
    if str(getattr(weight, "layout", "torch.strided")) != "torch.strided":
        raise TypeError(f"{argument}: expected a dense tensor; got layout {weight.layout}")
    dtype = str(weight.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise TypeError(f"{argument}: expected dtype {', '.join(DTYPES)}; got {dtype}")
    if weight.ndim < 2:
        raise ValueError(
            f"{argument}: expected two dimensions or more; got shape {tuple(weight.shape)}"
        )
    if math.prod(weight.shape) == 0:
        raise ValueError(
            f"{argument}: expected at least one entry; got shape {tuple(weight.shape)}"
        )
    return backend


def entries_to_keep(size: int, sparsity: float | None) -> int:
    """K = size - round(sparsity * size), ties to even.

    Raises:
        TypeError: sparsity is not a number. ValueError: it is not in [0, 1).
    """
    if isinstance(sparsity, bool) or not isinstance(
        sparsity, int | float | np.integer | np.floating
    ):
        raise TypeError(f"sparsity: expected a number; got {type(sparsity).__name__}")
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"sparsity: expected the fraction of zeros, in [0, 1); got {sparsity!r}")
    return size - round(float(sparsity) * size)


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


def make_scoring(
    backend: Backend,
    A: Matrix,
    score: str,
    factors: tuple[Any, Any] | None,
    mixture: tuple[float, float] = (0.0, 0.0),
    row: Any = None,
    column: Any = None,
    flaws: Flaws | None = None,
) -> Scoring:
    """A checked `Scoring`; `factors` are left (m, k) and right (k, n), B = left @ right.

    With `flaws` values on a device are counted there, see `check_vector`.
    """
    if score not in SCORE_NAMES:
        raise ValueError(f"score: expected one of {', '.join(SCORE_NAMES)}; got {score!r}")
    base = BASES[score]
    left = right = None
    if base != Base.MAGNITUDE:
        if not isinstance(factors, tuple | list) or len(factors) != 2:
            raise ValueError(
                f"factors: expected (left, right), the low rank of score {score!r}; "
                f"got {factors!r:.80}"
            )
        left, right = (check_vector(backend, factor, "factors", None, flaws) for factor in factors)
        fits = left.ndim == right.ndim == 2 and left.shape[1] == right.shape[0] > 0
        if not fits or (left.shape[0], right.shape[1]) != (A.m, A.n):
            raise ValueError(
                f"factors: expected shapes ({A.m}, k) and (k, {A.n}) with k >= 1; "
                f"got {tuple(left.shape)} and {tuple(right.shape)}"
            )
    weights = (0.0, 0.0) if base != Base.MIXTURE else check_mixture(mixture)
    row = None if row is None else check_vector(backend, row, "row", A.m, flaws)
    column = None if column is None else check_vector(backend, column, "column", A.n, flaws)
    return Scoring(base, left, right, weights, row, column)


def check_mixture(mixture: Any) -> tuple[float, float]:
    """The weights (b, a) of a mixed score: finite, not negative, not both zero."""
    try:
        b, a = (float(weight) for weight in mixture)
    except (TypeError, ValueError):
        raise ValueError(f"mixture: expected two weights (b, a); got {mixture!r}") from None
    if not (0.0 <= b < math.inf and 0.0 <= a < math.inf and a + b > 0.0):
        raise ValueError(f"mixture: expected weights >= 0, not both 0; got {mixture!r}")
    return b, a


def check_vector(
    backend: Backend, values: Any, argument: str, length: int | None, flaws: Flaws | None = None
) -> Any:
    """Finite float32 values of the backend's own kind; with a length, a vector >= 0 of it.

    On a device, values out of range are only counted, in `flaws`, if that is given.
    """
    if not hasattr(values, "shape") or not hasattr(values, "dtype"):
        raise TypeError(f"{argument}: expected an array; got {type(values).__name__}")
    if length is not None and tuple(values.shape) != (length,):
        raise ValueError(f"{argument}: expected shape ({length},); got {tuple(values.shape)}")
    vector = backend.vector(values)
    if flaws is not None and not isinstance(vector, np.ndarray):
        bad = ~(abs(vector) <= bg.FLOAT32_MAX)
        expected = "finite float32 values"
        if length is not None:
            bad, expected = bad | (vector < 0), f"{expected} >= 0"
        flaws.add(bad.sum(), f"{argument}: expected {expected}; got {{}} that are not")
    elif math.prod(vector.shape) > 0:
        low, high = float(vector.min()), float(vector.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"{argument}: expected finite float32 values; got {low} to {high}")
        if length is not None and low < 0.0:
            raise ValueError(f"{argument}: expected values >= 0; got {low}")
    return vector


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
            makes the result exactly unbiased.
        score, factors: see `laws.Base`; left (m, k) and right (k, n) of B. mixture: (b, a).
        row, column: float32 (m,) and (n,) factors of the score, or None.
        group: "tensor", or "row" to give every row its own budget of n - round(sparsity * n).
        pattern: None, "N:M" or blocks "RxC", see `patterns`; of blocks, K counts blocks.
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
    # The histogram finds what is not finite, unless B hides it or the row sums trip over it first.
    hidden = score != "magnitude" or solved_law.row_weights != "none"
    flaws = Flaws()
    if hidden:
        flaws.add(
            backend.not_finite(A),
            "weight: expected finite entries that fit float32; got {} that are NaN or infinite",
        )
    pipeline = _pipeline(backend, solved_law, rescale, budget, flaws)
    if solved_law.row_weights != "none":
        own = pipeline.row_weights(A, budget * A.m if per_row else budget)
        row = own if row is None else own * check_vector(backend, row, "row", A.m, flaws)
    scoring = make_scoring(backend, A, score, factors, mixture, row, column, flaws)
    result = backend.empty_like(weight)
    out = backend.matrix(result)
    if isinstance(chosen, Blocks):
        return _keep_blocks(backend, A, scoring, chosen, sparsity, group, result)
    if chosen is not None:
        host = _Pipeline(backend, solved_law, rescale, budget)
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
    group: str, result: Any,
) -> Sparse:  # fmt: skip
    """The blocks of largest score: the threshold of a matrix with an entry for each block."""
    operations = require_patterns(backend)
    scores = operations.block_scores(A, scoring, blocks)
    kept = sparsify(scores, sparsity=sparsity, group=group)
    nnz = operations.keep_blocks(A, blocks, kept.weight, backend.matrix(result))
    return Sparse(result, nnz, kept.c)


def _pipeline(backend: Backend, law: Law, rescale: bool, budget: int, flaws: Flaws) -> Any:
    """The stages after the score: on the device for one, solved on the host for the other."""
    if backend.name != "gpu":
        return _Pipeline(backend, law, rescale, budget)
    from spectral_kernels.gpu.pipeline import DevicePipeline  # noqa: PLC0415 (Triton may be missing)

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


def _refuse(broken: int) -> None:
    raise ValueError(
        "weight: expected finite entries whose scores fit float32; "
        f"got {broken} that are NaN or infinite"
    )


def _refuse_overflow(A: Matrix) -> None:
    raise ValueError(
        f"rescale: some A / p overflow {A.dtype}; use rescale=False, another law, or a wider dtype"
    )


@dataclass(frozen=True)
class _Pipeline:
    """The stages after the score, for one law and budget; each run returns (nnz, c per group)."""

    backend: Backend
    law: Law
    rescale: bool
    budget: int

    def run(
        self, A: Matrix, scoring: Scoring, draw: Draw, out: Matrix
    ) -> tuple[int, NDArray[np.float64]]:
        """The whole matrix as one group."""
        counts = self.backend.histogram(A, scoring)
        broken = int(counts[0][bg.FINITE_BINS :].sum())
        if broken:
            _refuse(broken)
        if self._keeps_largest(A.size):
            thresholds = self._threshold(A, scoring, counts[0])
            nnz = self.backend.keep_largest(A, scoring, thresholds, out)
            return nnz, thresholds.patterns.view(np.float32).astype(np.float64)
        table = self._solve(A, scoring, *counts)
        return self._draw(A, scoring, table, draw, out)

    def run_rows(
        self, A: Matrix, scoring: Scoring, draw: Draw, out: Matrix
    ) -> tuple[int, NDArray[np.float64]]:
        """Each row a group of its own."""
        if self.budget == 0:
            return self.run(A, scoring, draw, out)  # then all groups are alike
        if self._keeps_largest(A.n):
            patterns, stops, broken = self.backend.row_thresholds(A, scoring, self.budget)
            if broken:
                _refuse(broken)
            nnz = self.backend.keep_largest(A, scoring, Thresholds(patterns, stops), out)
            return nnz, patterns.view(np.float32).astype(np.float64)
        parameters, broken = self.backend.row_laws(
            A, scoring, self.law.shape, self._parameter(A), self.budget
        )
        if broken:
            _refuse(broken)
        table = LawTable(parameters, self.law.shape, self.rescale)
        return self._draw(A, scoring, table, draw, out)

    def row_weights(self, A: Matrix, budget: int) -> Any:
        """The row vector of the law, (m,) of the backend's own kind."""
        l1 = self.backend.row_l1(A)
        if self.law.row_weights == "l1":
            return self.backend.vector(row_l1_weights(l1))
        return self.backend.vector(bernstein_row_weights(l1, A.n, max(budget, 1)))

    def run_groups(
        self, A: Matrix, scoring: Scoring, pattern: NM, draw: Draw, out: Matrix
    ) -> tuple[int, NDArray[np.float64]]:
        """Each N of M a group of its own."""
        operations = require_patterns(self.backend)
        if self.law.draws:
            shape, rescale = self.law.shape, self.rescale
            result = operations.sample_of(A, scoring, pattern, shape, rescale, draw, out)
        else:
            result = operations.keep_largest_of(A, scoring, pattern, out)
        if result.broken:
            _refuse(result.broken)
        if self.law.draws and self.rescale and not self.backend.all_finite(out):
            _refuse_overflow(A)
        return result.nnz, np.array([np.nan])

    def _keeps_largest(self, size: int) -> bool:
        """Whether nothing is left to chance: also where all is kept, or nothing."""
        return not self.law.draws or self.budget in (0, size)

    def _threshold(self, A: Matrix, scoring: Scoring, count: Int64) -> Thresholds:
        if self.budget == 0:
            return Thresholds(np.array([bg.FINITE_BINS << bg.LOW_BITS], np.uint32))
        cut, above = solver.find_rank(count, self.budget)
        if cut < 0:
            pattern, equal, wanted = 0, A.size - above, self.budget - above
        else:
            low, multiplicity = self.backend.refine(A, scoring, cut)
            value, equal, wanted = solver.find_rank_value(low, multiplicity, above, self.budget)
            pattern = (cut << bg.LOW_BITS) + value
        stop = A.size
        if wanted < equal:
            stop = self.backend.tie_stop(A, scoring, pattern, wanted) if wanted else 0
        return Thresholds(np.array([pattern], np.uint32), np.array([stop], np.int64))

    def _parameter(self, A: Matrix) -> float:
        if self.law.name == "am07" and self.law.parameter == 0.0:
            return am07_constant(A.n)
        return self.law.parameter

    def _solve(self, A: Matrix, scoring: Scoring, count: Int64, low: Int64) -> LawTable:
        alpha, beta, first, last, top = solver.prepare(
            count, low, int(self.law.shape), self._parameter(A), A.m, A.n, self.budget
        )
        solved = (0.0, alpha, beta, 1.0)
        if first <= last:
            problem = (top, int(self.law.shape), alpha, beta, self.budget)
            c, cut, above, below = solver.solve_bins(count, low, first, last, *problem)
            if cut >= 0:
                values, multiplicity = self.backend.refine(A, scoring, cut)
                c = solver.solve_values(values, multiplicity, cut, above, below, *problem)
            solved = bg.kernel_parameters(c, top, int(self.law.shape), alpha, beta)
        parameters = np.array([solved], np.float32)
        return LawTable(parameters, self.law.shape, self.rescale)

    def _draw(
        self, A: Matrix, scoring: Scoring, table: LawTable, draw: Draw, out: Matrix
    ) -> tuple[int, NDArray[np.float64]]:
        nnz = self.backend.sample(A, scoring, table, draw, out)
        if self.rescale and _may_overflow(A, scoring, table) and not self.backend.all_finite(out):
            _refuse_overflow(A)
        C, scale = table.parameters[:, 0].astype(np.float64), table.parameters[:, 3]
        power = 2 if table.shape in (Shape.L2, Shape.TRIMMED) else 1
        return nnz, C / UNIT * scale.astype(np.float64) ** power


def _may_overflow(A: Matrix, scoring: Scoring, table: LawTable) -> bool:
    """Whether A / p, with p as small as 2^-24, may leave the range of A's dtype.

    float64 has room for any score; float32 and bfloat16 have it unless the scores, where they are
    the entries themselves, were scaled down from near the end of their range.
    """
    if A.dtype == "float16":
        return True
    plain = scoring.base == Base.MAGNITUDE and scoring.row is None and scoring.column is None
    return A.dtype != "float64" and not (plain and bool((table.parameters[:, 3] > 2.0**-100).all()))


def _row(A: Matrix, i: int) -> Matrix:
    return Matrix(A.storage[i * A.n : (i + 1) * A.n], 1, A.n, A.dtype)
