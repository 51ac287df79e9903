"""The stages after the score, on the device from end to end: nothing here waits for it.

Histogram, budget, refinement, draw and the checks are queued one after the other; what a stage must
know of the one before lies in device memory, and passes that turn out not to be needed end at once.
So a call can be captured in a CUDA graph.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton
from numpy.typing import NDArray

from spectral_kernels.backends.deferred import BROKEN, OVERFLOW, Flaws
from spectral_kernels.backends.gpu.backend import GPUBackend
from spectral_kernels.backends.gpu.plan import device_of
from spectral_kernels.backends.gpu.triton import gated, histograms, rank, solve, weights
from spectral_kernels.backends.protocol import Draw, Matrix, Scoring
from spectral_kernels.reference import budget as bg
from spectral_kernels.reference.laws import Base, Law, Shape, am07_constant
from spectral_kernels.reference.rows import bernstein_terms, fixed_point_shift
from spectral_kernels.reference.stream import UNIT

INTEGERS, FLOATS = histograms.INTEGERS.value, histograms.FLOATS.value
SPAN, SPANS = histograms.SPAN.value, histograms.SPANS.value
#: c of each group, read when it is asked for.
Constants = Callable[[], NDArray[np.float64]]
#: Bytes of histograms of rows that are solved at a time.
_TABLE_BYTES = 1 << 26
#: No fused multiply-add, where the bits are promised; eight warps give each exponent a thread.
EXACT = {"num_warps": 8, "enable_fp_fusion": False}


def float64_bits(value: float) -> int:
    """The bit pattern, as kernels take float64 arguments."""
    bits: int = struct.unpack("<q", struct.pack("<d", value))[0]
    return bits


@dataclass(frozen=True)
class DevicePipeline:
    """One law and budget; each run returns (nnz, c): int64 (1,) on the device, and how to read c.

    flaws gets the counts of what is not finite.
    """

    backend: GPUBackend
    law: Law
    rescale: bool
    budget: int
    flaws: Flaws

    def run(
        self, A: Matrix, scoring: Scoring, draw: Draw, out: Matrix
    ) -> tuple[torch.Tensor, Constants]:
        """The whole matrix as one group."""
        count, low = self._histogram(A, scoring)
        if self._keeps_largest(A.size):
            thresholds, stops = self._threshold(A, scoring, count)
            nnz = self.backend.launch_keep_largest(A, scoring, thresholds, stops, out)
            return nnz, lambda: host(thresholds.view(torch.float32))
        laws = self._laws(A, scoring, count, low)
        return self._draw(A, scoring, laws, draw, out)

    def run_rows(
        self, A: Matrix, scoring: Scoring, draw: Draw, out: Matrix
    ) -> tuple[torch.Tensor, Constants]:
        """Each row a group of its own."""
        if self.budget == 0:
            return self.run(A, scoring, draw, out)  # then all groups are alike
        if self._keeps_largest(A.n):
            thresholds, stops, broken = self.backend.launch_row_thresholds(A, scoring, self.budget)
            self.flaws.add(broken, BROKEN)
            nnz = self.backend.launch_keep_largest(A, scoring, thresholds, stops, out)
            return nnz, lambda: host(thresholds.view(torch.float32))
        return self._draw(A, scoring, self._row_laws(A, scoring), draw, out)

    def row_weights(self, A: Matrix, budget: int) -> torch.Tensor:
        """The row vector of the law, float32 (m,)."""
        l1 = self.backend.launch_row_l1(A)
        if self.law.row_weights == "l1":
            largest = l1.max()
            return (l1 / torch.where(largest > 0, largest, 1.0)).to(torch.float32)
        alpha, beta = bernstein_terms(A.m, A.n, max(budget, 1))
        found = torch.empty(A.m, dtype=torch.float32, device=l1.device)
        block = min(triton.next_power_of_2(A.m), 1024)
        with device_of(A):
            weights.bernstein_weights[(1,)](
                l1, found, float64_bits(alpha), float64_bits(beta), fixed_point_shift(A.m, 0), A.m,
                BLOCK=block, **EXACT,
            )  # fmt: skip
        return found

    def _histogram(self, A: Matrix, scoring: Scoring) -> tuple[torch.Tensor, torch.Tensor]:
        table = self.backend.histogram_table(A, scoring)
        broken = torch.zeros(1, dtype=torch.int64, device=table.device)
        folded = fold(A, table.unsqueeze(0), broken)
        self.flaws.add(broken, BROKEN)
        return folded

    def _keeps_largest(self, size: int) -> bool:
        """Whether nothing is left to chance: also where all is kept, or nothing."""
        return not self.law.draws or self.budget in (0, size)

    def _values(self, A: Matrix, scoring: Scoring, integers: torch.Tensor) -> tuple[Any, Any]:
        """The counts of the values of the bin to refine, and the sums of their spans."""
        values = torch.zeros(1 << bg.LOW_BITS, dtype=torch.int64, device=integers.device)
        sums = torch.empty((4, SPANS), dtype=torch.int64, device=integers.device)
        self.backend._plan(A, scoring).launch(gated.refine_cut, A.storage, values, integers)
        with device_of(A):
            histograms.fold_values[(SPANS, 1)](values, integers, sums)
        return values, sums

    def _threshold(
        self, A: Matrix, scoring: Scoring, count: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The pattern of the budget-th largest score, and the index after its last kept tie."""
        device = count.device
        integers = torch.empty(INTEGERS, dtype=torch.int64, device=device)
        threshold = torch.empty(1, dtype=torch.int32, device=device)
        stop = torch.empty(1, dtype=torch.int64, device=device)
        with device_of(A):
            rank.find_rank[(1,)](count, self.budget, integers, **EXACT)
        values, sums = self._values(A, scoring, integers)
        with device_of(A):
            rank.finish_threshold[(1,)](
                values, sums, self.budget, A.size, integers, threshold, stop, **EXACT
            )
        plan = self.backend._plan(A, scoring)
        table = torch.zeros(plan.segments, dtype=torch.int32, device=device)
        whole = plan.whole_rows
        plan.launch(gated.count_ties, A.storage, table, integers, WHOLE_ROWS=whole)
        plan.launch(
            gated.find_tie, A.storage, table, integers, stop, grid=(1,), segments=table.numel(),
            tiles=plan.column_tiles, WHOLE_ROWS=whole, SEGMENTS=gated.SEGMENTS,
        )  # fmt: skip
        return threshold, stop

    def _laws(
        self, A: Matrix, scoring: Scoring, count: torch.Tensor, low: torch.Tensor
    ) -> torch.Tensor:
        """(C, alpha, beta, scale), float32 (1, 4)."""
        integers, floats = self._solved(A, count, low, A.m)
        values, sums = self._values(A, scoring, integers)
        laws = torch.empty((1, 4), dtype=torch.float32, device=count.device)
        with device_of(A):
            solve.finish_law[(1,)](
                values, sums, self.budget, integers, floats, laws, 0, SHAPE=int(self.law.shape),
                BY_ROW=False, COLUMNS=SPAN, **EXACT,
            )  # fmt: skip
        return laws

    def _solved(
        self, A: Matrix, count: torch.Tensor, low: torch.Tensor, m: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What `solve.solve_law` leaves, of groups that are m x n each."""
        groups, device, parameter = len(count), count.device, self.law.parameter
        if self.law.name == "am07":
            parameter = (parameter or am07_constant(A.n)) / A.n
        integers = torch.empty((groups, INTEGERS), dtype=torch.int64, device=device)
        floats = torch.empty((groups, FLOATS), dtype=torch.float64, device=device)
        scale = bg.trim_scale(m + A.n, self.budget)
        with device_of(A):
            solve.solve_law[(groups,)](
                count, low, self.budget, float64_bits(parameter), float64_bits(scale), m + A.n,
                integers, floats, SHAPE=int(self.law.shape), **EXACT,
            )  # fmt: skip
        return integers, floats

    def _row_laws(self, A: Matrix, scoring: Scoring) -> torch.Tensor:
        """(C, alpha, beta, scale) of each row, float32 (m, 4)."""
        device = A.storage.device
        laws = torch.empty((A.m, 4), dtype=torch.float32, device=device)
        broken = torch.zeros(A.m, dtype=torch.int64, device=device)
        columns = min(triton.next_power_of_2(A.n), 1024)
        first = 0
        for part, some_scoring in self._runs(A, scoring):
            patterns = self.backend._patterns(part, some_scoring)
            table = torch.zeros((part.m, 1, bg.BINS), dtype=torch.int64, device=device)
            with device_of(A):
                gated.row_histogram[(part.m,)](patterns, table, A.n, COLUMNS=columns)
            integers, floats = self._solved(A, *fold(A, table, broken.narrow(0, first, part.m)), 1)
            with device_of(A):
                solve.finish_law[(part.m,)](
                    patterns, None, self.budget, integers, floats, laws.narrow(0, first, part.m),
                    A.n, SHAPE=int(self.law.shape), BY_ROW=True, COLUMNS=columns, **EXACT,
                )  # fmt: skip
            first += part.m
        self.flaws.add(broken.sum(), BROKEN)
        return laws

    def _runs(self, A: Matrix, scoring: Scoring) -> Iterator[tuple[Matrix, Scoring]]:
        """Runs of rows whose three tables of 8192 counts take `_TABLE_BYTES`."""
        return self.backend._runs(A, scoring, max(1, _TABLE_BYTES // (3 * 8 * bg.BINS)))

    def _draw(
        self, A: Matrix, scoring: Scoring, laws: torch.Tensor, draw: Draw, out: Matrix
    ) -> tuple[torch.Tensor, Constants]:
        shape = self.law.shape
        nnz = self.backend.launch_sample(A, scoring, laws, shape, self.rescale, draw, out)
        # See `sparsify`: otherwise the scale of the largest entry tells whether A / p may overflow.
        plain = scoring.base == Base.MAGNITUDE and scoring.row is None and scoring.column is None
        if self.rescale and A.dtype != "float64":
            gate = laws if plain and len(laws) == 1 and A.dtype != "float16" else None
            self.flaws.add(self.backend.not_finite(out, gate), OVERFLOW.format(A.dtype))
        return nnz, lambda: constants(laws, shape)


def constants(laws: torch.Tensor, shape: Shape) -> NDArray[np.float64]:
    """c of laws float32 (groups, 4); waits for the device."""
    table = host(laws)
    power = 2 if shape in (Shape.L2, Shape.TRIMMED) else 1
    c: NDArray[np.float64] = table[:, 0] / UNIT * table[:, 3] ** power
    return c


def fold(A: Matrix, table: torch.Tensor, broken: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(count, low) int64 (groups, 8192) of packed copies (groups, copies, 8192); see `gated`."""
    groups, copies = table.shape[:2]
    count, low = (
        torch.empty((groups, bg.BINS), dtype=torch.int64, device=table.device) for _ in range(2)
    )
    with device_of(A):
        histograms.fold_histogram[(bg.BINS // histograms.FOLD.value, groups)](
            table, count, low, broken, copies
        )
    return count, low


def host(values: torch.Tensor) -> NDArray[np.float64]:
    """As float64 on the host; waits for the device."""
    return values.cpu().numpy().astype(np.float64)
