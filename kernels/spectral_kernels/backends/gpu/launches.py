"""What is launched on one matrix. Nothing here waits for the device.

Storage is a flat torch tensor; kernels run on torch's current stream.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton

from spectral_kernels.backends.gpu.plan import Plan, ceil_div, device_of, has_nvidia, vector_unit
from spectral_kernels.backends.gpu.triton import conditional, kernels
from spectral_kernels.backends.gpu.triton import rows as row_kernels
from spectral_kernels.backends.protocol import Draw, Matrix, Scoring
from spectral_kernels.reference import budget as bg
from spectral_kernels.reference.laws import Base, Law, Shape, am07_constant
from spectral_kernels.reference.rows import fixed_point_shift
from spectral_kernels.reference.stream import split_seed

_QUAD = 4
#: Entries that a program of `count_not_finite` takes at a time, and its programs at most.
FLAT_ENTRIES = 4096
_FLAT_PROGRAMS = 4096


@dataclass(frozen=True)
class Launches:
    """The launches of a backend whose tiles are these.

    entries: of a tile of the elementwise kernels, a power of two; a warp takes one. rows, columns
    and depth: the tile of kernels that make B = left @ right, each 16 or more.
    """

    entries: int = 1024
    rows: int = 64
    columns: int = 64
    depth: int = 16

    def plan(self, A: Matrix, scoring: Scoring, skip: int = 0) -> Plan:
        """How a matrix is cut into tiles."""
        if scoring.base == Base.MAGNITUDE:
            # Twice the bytes, or shifted columns, take up twice the registers.
            heavy = A.dtype == "float64" or skip > 0
            entries = max(self.entries // 2, 8) if heavy else self.entries
            columns = min(max(triton.next_power_of_2(A.n + skip), 8), entries)
            return Plan(A, scoring, skip, entries // columns, columns, self.depth, warps=1)
        return Plan(A, scoring, skip, self.rows, self.columns, self.depth, warps=4)

    def launch_histogram(self, A: Matrix, scoring: Scoring) -> torch.Tensor:
        """The packed counts int64 (copies, 8192), see `kernels`."""
        plan = self.plan(A, scoring)
        programs = math.prod(plan.grid)
        copies = ceil_div(programs, kernels.PACKED_ENTRIES // plan.program_entries)
        # More copies than sums need: programs that run at once should not meet on one counter.
        copies = max(copies, min(programs, 16))
        table = torch.zeros((copies, bg.BINS), dtype=torch.int64, device=A.storage.device)
        plan.launch(kernels.histogram, A.storage, table, copies)
        return table

    def launch_score_bits(self, A: Matrix, scoring: Scoring) -> torch.Tensor:
        """The bits of the scores, int32 (m, n)."""
        out = torch.empty((A.m, A.n), dtype=torch.int32, device=A.storage.device)
        self.plan(A, scoring).launch(kernels.score_bits, A.storage, out)
        return out

    def launch_keep_largest(
        self, A: Matrix, scoring: Scoring, bits: torch.Tensor, stops: torch.Tensor, out: Matrix
    ) -> torch.Tensor:
        """As `keep_largest`, with the thresholds' int32 bits and int64 tie stops on the device.

        Returns the number of nonzeros written, (1,) int64.
        """
        kept = torch.zeros(1, dtype=torch.int64, device=A.storage.device)
        self.plan(A, scoring).launch(
            kernels.keep_largest, A.storage, out.storage, kept,
            thresholds=bits, tie_stops=stops, BY_ROW=len(bits) > 1,
        )  # fmt: skip
        return kept

    def launch_sample(
        self, A: Matrix, scoring: Scoring, laws: torch.Tensor, shape: Shape, rescale: bool,
        draw: Draw, out: Matrix,
    ) -> torch.Tensor:  # fmt: skip
        """As `sample`, with the law's parameters (groups, 4) float32 on the device.

        Returns the number of nonzeros written, (1,) int64.
        """
        kept = torch.zeros(1, dtype=torch.int64, device=A.storage.device)
        k0, k1 = split_seed(draw.seed)
        quad, skip = divmod(draw.column, _QUAD)
        self.plan(A, scoring, skip).launch(
            kernels.sample, A.storage, out.storage, kept, laws=laws, row_offset=draw.row,
            quad_offset=quad, stream_id=draw.stream, k0=k0, k1=k1, SHAPE=int(shape),
            BY_ROW=len(laws) > 1, RESCALE=rescale, SKIP=skip, NVIDIA=has_nvidia(),
        )  # fmt: skip
        return kept

    def launch_row_thresholds(
        self, A: Matrix, scoring: Scoring, budget: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `row_thresholds`: int32 (m,), int64 (m,) and a scalar."""
        device = A.storage.device
        bits = torch.empty(A.m, dtype=torch.int32, device=device)
        stops = torch.empty(A.m, dtype=torch.int64, device=device)
        nonfinite = torch.empty(A.m, dtype=torch.int32, device=device)
        columns = min(triton.next_power_of_2(A.n), 4096)
        first = 0
        for part, some_scoring in self.runs(A, scoring):
            found = (each.narrow(0, first, part.m) for each in (bits, stops, nonfinite))
            scores = self.launch_score_bits(part, some_scoring)
            with device_of(A):
                row_kernels.row_threshold[(part.m,)](scores, *found, A.n, budget, COLUMNS=columns)
            first += part.m
        return bits, stops, nonfinite.sum()

    def launch_row_l1(self, A: Matrix) -> torch.Tensor:
        """As `row_l1`."""
        sums = torch.empty(A.m, dtype=torch.float64, device=A.storage.device)
        unit = vector_unit(A)
        columns = min(triton.next_power_of_2(A.n), 1024)
        rows = max(1, 1024 // columns)
        with device_of(A):
            row_kernels.row_l1[(ceil_div(A.m, rows),)](
                A.storage, sums, A.m, A.n // unit, fixed_point_shift(A.n, 0),
                UNIT=unit, ROWS=rows, COLUMNS=columns,
            )  # fmt: skip
        return sums

    def not_finite(self, A: Matrix, laws: torch.Tensor | None = None) -> torch.Tensor:
        """How many entries are NaN or infinite as float32, int64 (1,).

        With the law that A was drawn by, float32 (1, 4), they are counted only where its scale is
        2^-100 or less, else there are 0.
        """
        found = torch.zeros(1, dtype=torch.int64, device=A.storage.device)
        programs = min(ceil_div(A.size, FLAT_ENTRIES), _FLAT_PROGRAMS)
        with device_of(A):
            conditional.count_not_finite[(programs,)](
                A.storage, found, laws, A.size, CONDITIONAL=laws is not None, ENTRIES=FLAT_ENTRIES
            )
        return found

    def runs(
        self, A: Matrix, scoring: Scoring, longest: int = 1 << 62
    ) -> Iterator[tuple[Matrix, Scoring]]:
        """Runs of rows whose score bits take 1/64 of input and output, or 8 MiB."""
        buffer_bytes = max(1 << 23, 2 * A.storage.nbytes // 64)
        step = min(max(1, buffer_bytes // (4 * A.n)), longest)
        for first in range(0, A.m, step):
            last = min(first + step, A.m)
            yield A.rows(first, last), scoring.rows(first, last)


def float64_bits(value: float) -> int:
    """The bits of a float64, as kernels take them in an int64."""
    bits: int = struct.unpack("<q", struct.pack("<d", value))[0]
    return bits


def law_terms(law: Law, m: int, n: int, budget: int) -> tuple[int, int, int]:
    """What `solve.solve_law` takes of an m x n group: parameter, trim scale, m + n.

    The first two are bits of float64.
    """
    parameter = law.parameter
    if law.name == "am07":
        parameter = (parameter or am07_constant(n)) / n
    return float64_bits(parameter), float64_bits(bg.trim_scale(m + n, max(budget, 1))), m + n
