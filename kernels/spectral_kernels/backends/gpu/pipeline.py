"""The stages after the score, on the device from end to end: nothing here waits for it.

Histogram, budget, refinement, draw and the checks are queued one after the other. What a stage must
know of the one before lies in device memory, and a pass that is not needed ends at once. So a call
can be captured in a CUDA graph. A stage is written once, for one matrix and for many.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
import triton

from spectral_kernels.backends.deferred import NONFINITE, OVERFLOW
from spectral_kernels.backends.gpu.launches import Launches, float64_bits, law_terms
from spectral_kernels.backends.gpu.many import MOST, Many, launch_class
from spectral_kernels.backends.gpu.plan import captured, device_of
from spectral_kernels.backends.gpu.single import Single
from spectral_kernels.backends.gpu.triton import (
    conditional,
    histograms,
    rank,
    solve,
    weights,
)
from spectral_kernels.backends.protocol import (
    Float64,
    Job,
    Kept,
    LawTable,
    Matrix,
    Scoring,
    Thresholds,
)
from spectral_kernels.reference import budget as bg
from spectral_kernels.reference.laws import Law, Shape
from spectral_kernels.reference.rows import bernstein_terms, fixed_point_shift

INTEGERS, FLOATS = histograms.INTEGERS.value, histograms.FLOATS.value
SPAN, SPANS = histograms.SPAN.value, histograms.SPANS.value
#: Bytes of histograms of rows that are solved at a time.
_TABLE_BYTES = 1 << 26
#: No fused multiply-add, where the bits are promised; eight warps give each exponent a thread.
EXACT = {"num_warps": 8, "enable_fp_fusion": False}
#: A number of one matrix, or int64 (matrices,) on the device.
Numbers = int | torch.Tensor


class Launcher(Protocol):
    """The passes over the matrices of some jobs, which are done alike.

    Tables on the device have a row for each job; `histograms` says what their columns are.
    """

    @property
    def jobs(self) -> Sequence[Job]: ...

    @property
    def budgets(self) -> Numbers:
        """Entries to keep."""
        ...

    @property
    def sizes(self) -> Numbers:
        """Entries of the matrix."""
        ...

    def law_terms(self, law: Law) -> tuple[Numbers, Numbers, Numbers]:
        """See `launches.law_terms`."""
        ...

    def histogram(self) -> torch.Tensor:
        """Packed counts int64 (jobs, copies, 8192)."""
        ...

    def refine(self, values: torch.Tensor, integers: torch.Tensor) -> None:
        """Count the values (jobs, 2^18) of the bin that integers (jobs, INTEGERS) name."""
        ...

    def find_ties(self, integers: torch.Tensor, stops: torch.Tensor) -> None:
        """Where integers say that ties are cut, the flat index after the last, in stops (jobs,)."""
        ...

    def keep_largest(self, thresholds: torch.Tensor, stops: torch.Tensor) -> torch.Tensor:
        """Write what is kept under thresholds int32 (jobs,); nonzeros written, int64 (jobs,)."""
        ...

    def sample(self, laws: torch.Tensor, shape: Shape, rescale: bool) -> torch.Tensor:
        """Draw by laws float32 (jobs, 4), and write; nonzeros written, int64 (jobs,)."""
        ...

    def count_overflow(self, laws: torch.Tensor) -> torch.Tensor:
        """How many entries written by these laws are not finite, int64 (jobs,)."""
        ...


@dataclass(frozen=True)
class DevicePipeline:
    """See `Pipeline`. A job's `nnz` is an int64 on the device."""

    launches: Launches
    law: Law
    rescale: bool

    def row_weights(self, A: Matrix, budget: int) -> torch.Tensor:
        l1 = self.launches.launch_row_l1(A)
        if self.law.row_weights == "l1":
            largest = l1.max()
            return (l1 / torch.where(largest > 0, largest, 1.0)).to(torch.float32)
        alpha, beta = bernstein_terms(A.m, A.n, max(budget, 1))
        found = torch.empty(A.m, dtype=torch.float32, device=l1.device)
        together = min(triton.next_power_of_2(A.m), 1024)
        with device_of(A):
            weights.bernstein_weights[(1,)](
                l1, found, float64_bits(alpha), float64_bits(beta), fixed_point_shift(A.m, 0), A.m,
                ROWS=together, **EXACT,
            )  # fmt: skip
        return found

    def run(self, jobs: Sequence[Job]) -> list[Kept]:
        found: dict[int, Kept] = {}
        for indices in self._classes(jobs):
            some = [jobs[index] for index in indices]
            alone = len(some) == 1
            launcher: Launcher = (
                Single(self.launches, some[0]) if alone else Many(self.launches, some, self.law)
            )
            found.update(zip(indices, self._run(launcher), strict=True))
        return [found[index] for index in range(len(jobs))]

    def run_rows(self, job: Job) -> Kept:
        A, on = job.A, Single(self.launches, job)
        if job.budget == 0:
            return self._run(on)[0]  # all groups are alike
        if self.law.draws_some(job.budget, A.n):
            laws = self._row_laws(job)
            return Kept(self._draw(on, laws)[0], partial(_law_constants, laws, self.law.shape))
        thresholds, stops, nonfinite = self.launches.launch_row_thresholds(
            A, job.scoring, job.budget
        )
        job.deferred.add(nonfinite, NONFINITE)
        return Kept(on.keep_largest(thresholds, stops)[0], partial(_threshold_values, thresholds))

    def _classes(self, jobs: Sequence[Job]) -> list[list[int]]:
        """Indices of the jobs that go together, at most `MOST` at a time."""
        if len(jobs) == 1 or captured():
            return [[index] for index in range(len(jobs))]
        found: dict[Any, list[int]] = {}
        for index, job in enumerate(jobs):
            alike = launch_class(self.launches, job)
            draws = self.law.draws_some(job.budget, job.A.size)
            found.setdefault(index if alike is None else (alike, draws), []).append(index)
        return [some[at : at + MOST] for some in found.values() for at in range(0, len(some), MOST)]

    def _run(self, on: Launcher) -> list[Kept]:
        """Each matrix of a launcher as one group."""
        first = on.jobs[0]
        packed = on.histogram()
        nonfinite = _zeros(on)
        count, low = fold(first.A, packed, nonfinite)
        for at, job in enumerate(on.jobs):
            job.deferred.add(nonfinite[at], NONFINITE)
        if self.law.draws_some(first.budget, first.A.size):
            return self._sample(on, count, low)
        return self._keep_largest(on, count)

    def _keep_largest(self, on: Launcher, count: torch.Tensor) -> list[Kept]:
        A, groups = on.jobs[0].A, (len(on.jobs),)
        integers, stops = _empty(on, INTEGERS), _empty(on)
        thresholds = _empty(on, dtype=torch.int32)
        with device_of(A):
            rank.find_rank[groups](count, on.budgets, integers, **EXACT)
        values, sums = self._values(on, integers)
        with device_of(A):
            rank.finish_threshold[groups](
                values, sums, on.budgets, on.sizes, integers, thresholds, stops, **EXACT
            )
        on.find_ties(integers, stops)
        nnz = on.keep_largest(thresholds, stops)
        return [
            Kept(nnz[at], partial(_threshold_values, thresholds[at : at + 1]))
            for at in range(len(on.jobs))
        ]

    def _sample(self, on: Launcher, count: torch.Tensor, low: torch.Tensor) -> list[Kept]:
        A, shape, groups = on.jobs[0].A, self.law.shape, (len(on.jobs),)
        integers, floats = self._solved(A, count, low, on.budgets, on.law_terms(self.law))
        values, sums = self._values(on, integers)
        laws = _empty(on, 4, dtype=torch.float32)
        with device_of(A):
            solve.finish_law[groups](
                values, sums, on.budgets, integers, floats, laws, 0, SHAPE=int(shape),
                BY_ROW=False, COLUMNS=SPAN, **EXACT,
            )  # fmt: skip
        nnz = self._draw(on, laws)
        return [
            Kept(nnz[at], partial(_law_constants, laws[at : at + 1], shape))
            for at in range(len(on.jobs))
        ]

    def _draw(self, on: Launcher, laws: torch.Tensor) -> torch.Tensor:
        """Write what solved laws keep; nonzeros written, int64 (jobs,)."""
        nnz = on.sample(laws, self.law.shape, self.rescale)
        dtype = on.jobs[0].A.dtype
        if self.rescale and dtype != "float64":  # which has room for the A / p of any score
            found = on.count_overflow(laws)
            for at, job in enumerate(on.jobs):
                job.deferred.add(found[at], OVERFLOW.format(dtype))
        return nnz

    def _values(self, on: Launcher, integers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The counts of the values of the bins to refine, and the sums of their spans."""
        values, sums = _zeros(on, 1 << bg.LOW_BITS), _empty(on, 4, SPANS)
        on.refine(values, integers)
        with device_of(on.jobs[0].A):
            histograms.fold_values[(SPANS, len(on.jobs))](values, integers, sums)
        return values, sums

    def _solved(
        self, A: Matrix, count: torch.Tensor, low: torch.Tensor, budgets: Numbers,
        terms: tuple[Numbers, Numbers, Numbers],
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """What `solve.solve_law` leaves of each group."""
        groups, device = len(count), count.device
        integers = torch.empty((groups, INTEGERS), dtype=torch.int64, device=device)
        floats = torch.empty((groups, FLOATS), dtype=torch.float64, device=device)
        with device_of(A):
            solve.solve_law[(groups,)](
                count, low, budgets, *terms, integers, floats, SHAPE=int(self.law.shape), **EXACT
            )
        return integers, floats

    def _row_laws(self, job: Job) -> torch.Tensor:
        """(C, alpha, beta, scale) of each row, float32 (m, 4)."""
        A, budget, device = job.A, job.budget, job.A.storage.device
        laws = torch.empty((A.m, 4), dtype=torch.float32, device=device)
        nonfinite = torch.zeros(A.m, dtype=torch.int64, device=device)
        columns = min(triton.next_power_of_2(A.n), 1024)
        terms = law_terms(self.law, 1, A.n, budget)
        first = 0
        for part, scoring in self._runs(A, job.scoring):
            bits = self.launches.launch_score_bits(part, scoring)
            packed = torch.zeros((part.m, 1, bg.BINS), dtype=torch.int64, device=device)
            with device_of(A):
                conditional.row_histogram[(part.m,)](bits, packed, A.n, COLUMNS=columns)
            count, low = fold(A, packed, nonfinite.narrow(0, first, part.m))
            integers, floats = self._solved(A, count, low, budget, terms)
            with device_of(A):
                solve.finish_law[(part.m,)](
                    bits, None, budget, integers, floats, laws.narrow(0, first, part.m),
                    A.n, SHAPE=int(self.law.shape), BY_ROW=True, COLUMNS=columns, **EXACT,
                )  # fmt: skip
            first += part.m
        job.deferred.add(nonfinite.sum(), NONFINITE)
        return laws

    def _runs(self, A: Matrix, scoring: Scoring) -> Any:
        """Runs of rows whose three tables of 8192 counts take `_TABLE_BYTES`."""
        return self.launches.runs(A, scoring, max(1, _TABLE_BYTES // (3 * 8 * bg.BINS)))


def fold(A: Matrix, packed: torch.Tensor, nonfinite: torch.Tensor) -> tuple[Any, Any]:
    """(count, low) int64 (groups, 8192) of packed counts (groups, copies, 8192).

    nonfinite int64 (groups,) gets how many scores are not finite added.
    """
    groups, copies = packed.shape[:2]
    count, low = (
        torch.empty((groups, bg.BINS), dtype=torch.int64, device=packed.device) for _ in range(2)
    )
    with device_of(A):
        histograms.fold_histogram[(bg.BINS // histograms.FOLD.value, groups)](
            packed, count, low, nonfinite, copies
        )
    return count, low


def _empty(on: Launcher, *shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """Memory for each job."""
    device = on.jobs[0].A.storage.device
    return torch.empty((len(on.jobs), *shape), dtype=dtype, device=device)


def _zeros(on: Launcher, *shape: int) -> torch.Tensor:
    """Counts for each job."""
    device = on.jobs[0].A.storage.device
    return torch.zeros((len(on.jobs), *shape), dtype=torch.int64, device=device)


def _law_constants(laws: torch.Tensor, shape: Shape) -> Float64:
    """See `LawTable.constants`; waits for the device."""
    return LawTable(laws.cpu().numpy(), shape).constants()


def _threshold_values(thresholds: torch.Tensor) -> Float64:
    """See `Thresholds.constants`; waits for the device."""
    return Thresholds(thresholds.cpu().numpy()).constants()
