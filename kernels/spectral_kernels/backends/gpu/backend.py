"""The GPU backend: torch CUDA tensors and, by DLPack, CuPy arrays, to the Triton kernels.

Storage is a flat torch tensor that shares the array's memory; kernels run on torch's current
stream. Under Triton's interpreter (TRITON_INTERPRET=1) the same code takes torch CPU tensors.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton
from torch.utils.dlpack import from_dlpack

from spectral_kernels.backends.cpu.backend import CPU
from spectral_kernels.backends.gpu.patterns import PatternOperations
from spectral_kernels.backends.gpu.plan import Plan, ceil_div, device_of, has_nvidia, vector_unit
from spectral_kernels.backends.gpu.triton import gated, kernels
from spectral_kernels.backends.gpu.triton import rows as row_kernels
from spectral_kernels.backends.gpu.triton.blocks import INTERPRETED
from spectral_kernels.backends.protocol import (
    Draw,
    Float32,
    Float64,
    Int64,
    LawTable,
    Matrix,
    Scoring,
    Thresholds,
    UInt32,
    module_of,
)
from spectral_kernels.reference import budget as bg
from spectral_kernels.reference.laws import Base, Shape
from spectral_kernels.reference.rows import fixed_point_shift
from spectral_kernels.reference.stream import split_seed

_QUAD = 4
_NOT_FINITE = bg.FINITE_BINS << bg.LOW_BITS
#: Entries of a block of the kernel that walks a matrix as one line, and its programs at most.
_FLAT_ENTRIES = 4096
_FLAT_PROGRAMS = 4096


@dataclass(frozen=True)
class GPUBackend(PatternOperations):
    """See `Backend`.

    entries: of a tile of the elementwise kernels, a power of two; a warp takes one. rows, columns
    and depth: the tile of kernels that make B = left @ right, each 16 or more.
    """

    name = "gpu"

    entries: int = 1024
    rows: int = 64
    columns: int = 64
    depth: int = 16

    def matrix(self, array: Any) -> Matrix:
        tensor = _tensor(array)
        dtype = str(tensor.dtype).removeprefix("torch.")
        m = tensor.shape[0]
        return Matrix(tensor.contiguous().reshape(-1), m, tensor.numel() // m, dtype)

    def empty_like(self, array: Any) -> Any:
        if module_of(array) == "torch":
            return array.detach().new_empty(array.shape)
        import cupy  # noqa: PLC0415 (only CuPy users have it)

        with array.device:
            return cupy.empty(array.shape, array.dtype)

    def vector(self, values: Any, beside: Matrix | None = None) -> torch.Tensor:
        if module_of(values) in ("torch", "cupy"):
            tensor = _tensor(values)
        else:
            tensor = torch.tensor(np.asarray(values, np.float32))
        if beside is not None:
            tensor = tensor.to(beside.storage.device)
        elif tensor.device.type == "cpu" and not INTERPRETED.value:
            tensor = tensor.cuda()
        return tensor.to(torch.float32).contiguous()

    def histogram(self, A: Matrix, scoring: Scoring) -> tuple[Int64, Int64]:
        table = self.histogram_table(A, scoring)
        low = (table & ((1 << kernels.PACKED_LOW) - 1)).sum(0)
        return _numpy((table >> kernels.PACKED_LOW).sum(0)), _numpy(low)

    def histogram_table(self, A: Matrix, scoring: Scoring) -> torch.Tensor:
        """The packed counts (copies, 8192) on the device, see `kernels`; does not wait for them."""
        plan = self._plan(A, scoring)
        programs = math.prod(plan.grid)
        copies = ceil_div(programs, kernels.PACKED_ENTRIES // plan.program_entries)
        # More copies than sums need: programs that run at once should not meet on one counter.
        copies = max(copies, min(programs, 16))
        table = torch.zeros((copies, bg.BINS), dtype=torch.int64, device=A.storage.device)
        plan.launch(kernels.histogram, A.storage, table, copies)
        return table

    def refine(self, A: Matrix, scoring: Scoring, cut: int) -> tuple[Int64, Int64]:
        table = torch.zeros(1 << bg.LOW_BITS, dtype=torch.int64, device=A.storage.device)
        self._plan(A, scoring).launch(kernels.refine, A.storage, table, cut)
        low = table.nonzero().reshape(-1)
        return _numpy(low), _numpy(table[low])

    def tie_stop(self, A: Matrix, scoring: Scoring, pattern: int, wanted: int) -> int:
        plan = self._plan(A, scoring)
        ties = self._count_between(A, plan, pattern, pattern)
        by_row = ties.sum(1, dtype=torch.int64).cumsum(0)
        if wanted > int(by_row[-1]):
            return A.size
        i, wanted = _find(by_row, wanted)
        by_tile = ties[i].to(torch.int64).cumsum(0)
        tile, wanted = _find(by_tile, wanted)
        rows, columns = plan.segment(i, tile)
        scores = self._patterns(*_part(A, scoring, rows, columns))
        found = (scores.reshape(-1) == pattern).nonzero()
        return int(rows.start * A.n + columns.start + found[wanted - 1]) + 1

    def row_laws(
        self, A: Matrix, scoring: Scoring, shape: Shape, parameter: float, budget: int
    ) -> tuple[Float32, int]:
        """As the protocol says; the scores of a run of rows at a time are solved on the host."""
        laws, broken = [], 0
        for part, some_scoring in self._runs(A, scoring):
            scores = _numpy(self._patterns(part, some_scoring)).view(np.float32)
            host = Matrix(scores.reshape(-1), part.m, part.n, "float32")
            table, bad = CPU.row_laws(host, Scoring(), shape, parameter, budget)
            laws.append(table)
            broken += bad
        return np.concatenate(laws), broken

    def row_thresholds(self, A: Matrix, scoring: Scoring, budget: int) -> tuple[UInt32, Int64, int]:
        patterns, stops, broken = self.launch_row_thresholds(A, scoring, budget)
        return _numpy(patterns).view(np.uint32), _numpy(stops), int(broken)

    def launch_row_thresholds(
        self, A: Matrix, scoring: Scoring, budget: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `row_thresholds`, int32 (m,), int64 (m,) and a scalar on the device: does not wait."""
        device = A.storage.device
        patterns = torch.empty(A.m, dtype=torch.int32, device=device)
        stops = torch.empty(A.m, dtype=torch.int64, device=device)
        broken = torch.empty(A.m, dtype=torch.int32, device=device)
        columns = min(triton.next_power_of_2(A.n), 4096)
        first = 0
        for part, some_scoring in self._runs(A, scoring):
            found = (each.narrow(0, first, part.m) for each in (patterns, stops, broken))
            scores = self._patterns(part, some_scoring)
            with device_of(A):
                row_kernels.row_threshold[(part.m,)](
                    scores, *found,
                    A.n, budget, COLUMNS=columns,
                )  # fmt: skip
            first += part.m
        return patterns, stops, broken.sum()

    def row_l1(self, A: Matrix) -> Float64:
        l1: Float64 = _numpy(self.launch_row_l1(A))
        return l1

    def launch_row_l1(self, A: Matrix) -> torch.Tensor:
        """As `row_l1`, on the device: does not wait."""
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

    def keep_largest(self, A: Matrix, scoring: Scoring, thresholds: Thresholds, out: Matrix) -> int:
        device = A.storage.device
        patterns = torch.tensor(thresholds.patterns.view(np.int32), device=device)
        stops = torch.tensor(thresholds.tie_stops, device=device)
        return int(self.launch_keep_largest(A, scoring, patterns, stops, out))

    def launch_keep_largest(
        self, A: Matrix, scoring: Scoring, patterns: torch.Tensor, stops: torch.Tensor, out: Matrix
    ) -> torch.Tensor:
        """As `keep_largest`, with int32 patterns and int64 tie stops on the device: does not wait.

        Returns the number of nonzeros written, (1,) int64 on the device.
        """
        kept = torch.zeros(1, dtype=torch.int64, device=A.storage.device)
        self._plan(A, scoring).launch(
            kernels.keep_largest, A.storage, out.storage, kept,
            thresholds=patterns, tie_stops=stops, BY_ROW=len(patterns) > 1,
        )  # fmt: skip
        return kept

    def sample(self, A: Matrix, scoring: Scoring, law: LawTable, draw: Draw, out: Matrix) -> int:
        laws = torch.tensor(law.parameters, device=A.storage.device)
        return int(self.launch_sample(A, scoring, laws, law.shape, law.rescale, draw, out))

    def launch_sample(
        self, A: Matrix, scoring: Scoring, laws: torch.Tensor, shape: Shape, rescale: bool,
        draw: Draw, out: Matrix,
    ) -> torch.Tensor:  # fmt: skip
        """As `sample`, with the law's parameters (groups, 4) float32 on the device: does not wait.

        Returns the number of nonzeros written, (1,) int64 on the device.
        """
        kept = torch.zeros(1, dtype=torch.int64, device=A.storage.device)
        k0, k1 = split_seed(draw.seed)
        quad, skip = divmod(draw.column, _QUAD)
        self._plan(A, scoring, skip).launch(
            kernels.sample, A.storage, out.storage, kept, laws=laws, row_offset=draw.row,
            quad_offset=quad, stream_id=draw.stream, k0=k0, k1=k1, SHAPE=int(shape),
            BY_ROW=len(laws) > 1, RESCALE=rescale, SKIP=skip, NVIDIA=has_nvidia(),
        )  # fmt: skip
        return kept

    def captured(self) -> bool:
        return not INTERPRETED.value and torch.cuda.is_current_stream_capturing()

    def all_finite(self, A: Matrix) -> bool:
        plan = self._plan(A, Scoring())
        return not bool(self._count_between(A, plan, _NOT_FINITE, 0xFFFFFFFF).any())

    def not_finite(self, A: Matrix, laws: torch.Tensor | None = None) -> torch.Tensor:
        """How many entries are NaN or infinite as float32, (1,) on the device: does not wait.

        With the law that A was drawn by, float32 (1, 4), they are counted only where its scale is
        2^-100 or less, else there are 0.
        """
        found = torch.zeros(1, dtype=torch.int64, device=A.storage.device)
        programs = min(ceil_div(A.size, _FLAT_ENTRIES), _FLAT_PROGRAMS)
        with device_of(A):
            gated.count_not_finite[(programs,)](
                A.storage, found, laws, A.size, GATED=laws is not None, ENTRIES=_FLAT_ENTRIES
            )
        return found

    def _plan(self, A: Matrix, scoring: Scoring, skip: int = 0) -> Plan:
        """How a matrix is cut into tiles."""
        if scoring.base == Base.MAGNITUDE:
            # Twice the bytes, or shifted columns, take up twice the registers.
            heavy = A.dtype == "float64" or skip > 0
            entries = max(self.entries // 2, 8) if heavy else self.entries
            columns = min(max(triton.next_power_of_2(A.n + skip), 8), entries)
            return Plan(A, scoring, skip, entries // columns, columns, self.depth, warps=1)
        return Plan(A, scoring, skip, self.rows, self.columns, self.depth, warps=4)

    def _count_between(self, A: Matrix, plan: Plan, lowest: int, highest: int) -> torch.Tensor:
        table = torch.empty(plan.segments, dtype=torch.int32, device=A.storage.device)
        plan.launch(
            kernels.count_between, A.storage, table, lowest, highest, WHOLE_ROWS=plan.whole_rows
        )
        return table

    def _patterns(self, A: Matrix, scoring: Scoring) -> torch.Tensor:
        """The bit patterns of the scores, int32 (m, n): does not wait."""
        out = torch.empty((A.m, A.n), dtype=torch.int32, device=A.storage.device)
        self._plan(A, scoring).launch(kernels.patterns, A.storage, out)
        return out

    def _runs(
        self, A: Matrix, scoring: Scoring, longest: int = 1 << 62
    ) -> Iterator[tuple[Matrix, Scoring]]:
        """Runs of rows, patterns of which take 1/64 of input and output, or 8 MiB."""
        buffer_bytes = max(1 << 23, 2 * A.storage.nbytes // 64)
        step = min(max(1, buffer_bytes // (4 * A.n)), longest)
        for first in range(0, A.m, step):
            yield _part(A, scoring, slice(first, min(first + step, A.m)), slice(0, A.n))


def _tensor(array: Any) -> torch.Tensor:
    tensor: torch.Tensor = array if module_of(array) == "torch" else from_dlpack(array)
    return tensor.detach()


def _numpy(tensor: torch.Tensor) -> Any:
    return tensor.cpu().numpy()


def _find(running: torch.Tensor, wanted: int) -> tuple[int, int]:
    """Where a running count first reaches `wanted`, and how many are wanted from there."""
    i = int(torch.searchsorted(running, wanted))
    return i, wanted - (int(running[i - 1]) if i > 0 else 0)


def _part(A: Matrix, scoring: Scoring, rows: slice, columns: slice) -> tuple[Matrix, Scoring]:
    """Whole rows, or a piece of one row, as a matrix, with its scoring."""
    first = rows.start * A.n + columns.start
    m, n = rows.stop - rows.start, columns.stop - columns.start
    part = Matrix(A.storage[first : first + m * n], m, n, A.dtype)
    return part, Scoring(
        base=scoring.base,
        left=None if scoring.left is None else scoring.left[rows],
        right=None if scoring.right is None else scoring.right[:, columns].contiguous(),
        weights=scoring.weights,
        row=None if scoring.row is None else scoring.row[rows],
        column=None if scoring.column is None else scoring.column[columns],
    )


GPU = GPUBackend()
