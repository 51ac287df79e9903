"""The stages after the score, with the budget solved on the host."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from spectral_kernels.backends import solver
from spectral_kernels.backends.deferred import NONFINITE, OVERFLOW
from spectral_kernels.backends.protocol import (
    Backend,
    Float32,
    Int64,
    Job,
    Kept,
    LawTable,
    Matrix,
    Scoring,
    Thresholds,
)
from spectral_kernels.reference import budget as bg
from spectral_kernels.reference.laws import Law, Shape, am07_constant
from spectral_kernels.reference.rows import bernstein_row_weights, row_l1_weights


class HostBackend(Backend, Protocol):
    """A backend whose operations return to the host, and which solves the laws of rows."""

    def row_laws(
        self, A: Matrix, scoring: Scoring, shape: Shape, parameter: float, budget: int
    ) -> tuple[Float32, int]:
        """Law parameters (m, 4) with each row its own budget; number of scores not finite."""
        ...


@dataclass(frozen=True)
class HostPipeline:
    """See `Pipeline`. Errors in the data are raised at once."""

    backend: HostBackend
    law: Law
    rescale: bool

    def row_weights(self, A: Matrix, budget: int) -> Any:
        l1 = self.backend.row_l1(A)
        if self.law.row_weights == "l1":
            return self.backend.vector(row_l1_weights(l1), A)
        return self.backend.vector(bernstein_row_weights(l1, A.n, max(budget, 1)), A)

    def run(self, jobs: Sequence[Job]) -> list[Kept]:
        return [self._run(job) for job in jobs]

    def run_rows(self, job: Job) -> Kept:
        A, scoring, budget = job.A, job.scoring, job.budget
        if budget == 0:
            return self._run(job)  # all groups are alike
        if not self.law.draws_some(budget, A.n):
            bits, stops, nonfinite = self.backend.row_thresholds(A, scoring, budget)
            job.deferred.add(nonfinite, NONFINITE)
            return self._keep_largest(job, Thresholds(bits, stops))
        parameters, nonfinite = self.backend.row_laws(
            A, scoring, self.law.shape, self._parameter(A), budget
        )
        job.deferred.add(nonfinite, NONFINITE)
        return self._draw(job, LawTable(parameters, self.law.shape, self.rescale))

    def _run(self, job: Job) -> Kept:
        count, low = self.backend.histogram(job.A, job.scoring)
        job.deferred.add(int(count[bg.FINITE_BINS :].sum()), NONFINITE)
        if not self.law.draws_some(job.budget, job.A.size):
            return self._keep_largest(job, self._threshold(job, count))
        return self._draw(job, self._solve(job, count, low))

    def _threshold(self, job: Job, count: Int64) -> Thresholds:
        A, scoring, budget = job.A, job.scoring, job.budget
        if budget == 0:
            return Thresholds(np.array([bg.FINITE_BINS << bg.LOW_BITS], np.uint32))
        cut, above = solver.find_rank(count, budget)
        if cut < 0:
            bits, equal, wanted = 0, A.size - above, budget - above
        else:
            low, multiplicity = self.backend.refine(A, scoring, cut)
            value, equal, wanted = solver.find_rank_value(low, multiplicity, above, budget)
            bits = (cut << bg.LOW_BITS) + value
        stop = A.size
        if wanted < equal:
            stop = self.backend.tie_stop(A, scoring, bits, wanted) if wanted else 0
        return Thresholds(np.array([bits], np.uint32), np.array([stop], np.int64))

    def _parameter(self, A: Matrix) -> float:
        if self.law.name == "am07" and self.law.parameter == 0.0:
            return am07_constant(A.n)
        return self.law.parameter

    def _solve(self, job: Job, count: Int64, low: Int64) -> LawTable:
        A, shape = job.A, int(self.law.shape)
        alpha, beta, first, last, top = solver.prepare(
            count, low, shape, self._parameter(A), A.m, A.n, job.budget
        )
        solved = (0.0, alpha, beta, 1.0)
        if first <= last:
            problem = (top, shape, alpha, beta, job.budget)
            c, cut, above, below = solver.solve_bins(count, low, first, last, *problem)
            if cut >= 0:
                values, multiplicity = self.backend.refine(A, job.scoring, cut)
                c = solver.solve_values(values, multiplicity, cut, above, below, *problem)
            solved = bg.kernel_parameters(c, top, shape, alpha, beta)
        return LawTable(np.array([solved], np.float32), self.law.shape, self.rescale)

    def _keep_largest(self, job: Job, thresholds: Thresholds) -> Kept:
        nnz = self.backend.keep_largest(job.A, job.scoring, thresholds, job.out)
        return Kept(nnz, thresholds.constants)

    def _draw(self, job: Job, table: LawTable) -> Kept:
        nnz = self.backend.sample(job.A, job.scoring, table, job.draw, job.out)
        checked = self.rescale and _may_overflow(job.A, job.scoring, table)
        if checked and not self.backend.all_finite(job.out):
            raise ValueError(OVERFLOW.format(job.A.dtype).format("some"))
        return Kept(nnz, table.constants)


def _may_overflow(A: Matrix, scoring: Scoring, table: LawTable) -> bool:
    """Whether A / p, with p as small as 2^-24, may leave the range of A's dtype.

    float64 has room for any score; float32 and bfloat16 have it unless the scores, where they are
    the entries themselves, were scaled down from near the end of their range.
    """
    if A.dtype == "float16":
        return True
    roomy = scoring.plain and bool((table.parameters[:, 3] > 2.0**-100).all())
    return A.dtype != "float64" and not roomy
