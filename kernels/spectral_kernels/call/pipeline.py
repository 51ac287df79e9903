"""The stages after the score, with the budget solved on the host."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectral_kernels.backends.deferred import BROKEN, OVERFLOW
from spectral_kernels.backends.protocol import (
    Backend,
    Draw,
    Int64,
    LawTable,
    Matrix,
    Scoring,
    Thresholds,
)
from spectral_kernels.call import solver
from spectral_kernels.reference import budget as bg
from spectral_kernels.reference.laws import Base, Law, Shape, am07_constant
from spectral_kernels.reference.patterns import NM, require_patterns
from spectral_kernels.reference.rows import bernstein_row_weights, row_l1_weights
from spectral_kernels.reference.stream import UNIT


@dataclass(frozen=True)
class Pipeline:
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
            raise ValueError(BROKEN.format(broken))
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
                raise ValueError(BROKEN.format(broken))
            nnz = self.backend.keep_largest(A, scoring, Thresholds(patterns, stops), out)
            return nnz, patterns.view(np.float32).astype(np.float64)
        parameters, broken = self.backend.row_laws(
            A, scoring, self.law.shape, self._parameter(A), self.budget
        )
        if broken:
            raise ValueError(BROKEN.format(broken))
        table = LawTable(parameters, self.law.shape, self.rescale)
        return self._draw(A, scoring, table, draw, out)

    def row_weights(self, A: Matrix, budget: int) -> Any:
        """The row vector of the law, (m,) of the backend's own kind."""
        l1 = self.backend.row_l1(A)
        if self.law.row_weights == "l1":
            return self.backend.vector(row_l1_weights(l1), A)
        return self.backend.vector(bernstein_row_weights(l1, A.n, max(budget, 1)), A)

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
            raise ValueError(BROKEN.format(result.broken))
        narrow = A.dtype != "float64"  # which has room for any score's A / p
        if self.law.draws and self.rescale and narrow and not self.backend.all_finite(out):
            raise ValueError(OVERFLOW.format(A.dtype).format("some"))
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
            raise ValueError(OVERFLOW.format(A.dtype).format("some"))
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
