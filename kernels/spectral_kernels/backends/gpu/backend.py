"""The GPU backend: torch CUDA tensors and, by DLPack, CuPy arrays, to the Triton kernels.

Storage is a flat torch tensor that shares the array's memory; kernels run on torch's current
stream. Under Triton's interpreter (TRITON_INTERPRET=1) the same code takes torch CPU tensors.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from spectral_kernels.backends.gpu.patterns import PatternLaunches
from spectral_kernels.backends.gpu.pipeline import DevicePipeline
from spectral_kernels.backends.gpu.plan import Plan, captured, interpreted
from spectral_kernels.backends.gpu.triton import kernels
from spectral_kernels.backends.protocol import (
    Draw,
    Float64,
    Int64,
    LawTable,
    Matrix,
    Pipeline,
    Scoring,
    Thresholds,
    UInt32,
    module_of,
)
from spectral_kernels.reference import budget as bg
from spectral_kernels.reference.laws import Law, Shape
from spectral_kernels.reference.patterns import NM

_NOT_FINITE = bg.FINITE_BINS << bg.LOW_BITS


@dataclass(frozen=True)
class GPUBackend(PatternLaunches):
    """See `Backend`; the tiles are those of `launches.Launches`."""

    @property
    def name(self) -> str:
        return "gpu"

    def matrix(self, array: Any) -> Matrix:
        tensor = _tensor(array)
        dtype = str(tensor.dtype).removeprefix("torch.")
        m = tensor.shape[0]
        return Matrix(tensor.resolve_neg().contiguous().reshape(-1), m, tensor.numel() // m, dtype)

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
        elif tensor.device.type == "cpu" and not interpreted():
            tensor = tensor.cuda()
        return tensor.to(torch.float32).contiguous()

    def pipeline(self, law: Law, rescale: bool) -> Pipeline:
        return DevicePipeline(self, law, rescale)

    def captured(self) -> bool:
        return captured()

    def all_finite(self, A: Matrix) -> bool:
        plan = self.plan(A, Scoring())
        return not bool(self._count_between(A, plan, _NOT_FINITE, 0xFFFFFFFF).any())

    def histogram(self, A: Matrix, scoring: Scoring) -> tuple[Int64, Int64]:
        packed = self.launch_histogram(A, scoring)
        low = (packed & ((1 << kernels.PACKED_LOW) - 1)).sum(0)
        return _numpy((packed >> kernels.PACKED_LOW).sum(0)), _numpy(low)

    def refine(self, A: Matrix, scoring: Scoring, cut: int) -> tuple[Int64, Int64]:
        table = torch.zeros(1 << bg.LOW_BITS, dtype=torch.int64, device=A.storage.device)
        self.plan(A, scoring).launch(kernels.refine, A.storage, table, cut)
        low = table.nonzero().reshape(-1)
        return _numpy(low), _numpy(table[low])

    def tie_stop(self, A: Matrix, scoring: Scoring, bits: int, wanted: int) -> int:
        plan = self.plan(A, scoring)
        ties = self._count_between(A, plan, bits, bits)
        by_row = ties.sum(1, dtype=torch.int64).cumsum(0)
        if wanted > int(by_row[-1]):
            return A.size
        i, wanted = _find(by_row, wanted)
        tile, wanted = _find(ties[i].to(torch.int64).cumsum(0), wanted)
        rows, columns = plan.segment(i, tile)
        part = A.rows(rows.start, rows.stop), scoring.rows(rows.start, rows.stop)
        scores = self.launch_score_bits(*part)[:, columns]
        found = (scores.reshape(-1) == bits).nonzero()
        return int(rows.start * A.n + columns.start + found[wanted - 1]) + 1

    def score_bits(self, A: Matrix, scoring: Scoring) -> UInt32:
        """The bits of the scores (m, n)."""
        bits: UInt32 = _numpy(self.launch_score_bits(A, scoring)).view(np.uint32)
        return bits

    def row_thresholds(self, A: Matrix, scoring: Scoring, budget: int) -> tuple[UInt32, Int64, int]:
        bits, stops, nonfinite = self.launch_row_thresholds(A, scoring, budget)
        return _numpy(bits).view(np.uint32), _numpy(stops), int(nonfinite)

    def row_l1(self, A: Matrix) -> Float64:
        l1: Float64 = _numpy(self.launch_row_l1(A))
        return l1

    def keep_largest(self, A: Matrix, scoring: Scoring, thresholds: Thresholds, out: Matrix) -> int:
        device = A.storage.device
        bits = torch.tensor(thresholds.bits.view(np.int32), device=device)
        stops = torch.tensor(thresholds.tie_stops, device=device)
        return int(self.launch_keep_largest(A, scoring, bits, stops, out))

    def sample(self, A: Matrix, scoring: Scoring, law: LawTable, draw: Draw, out: Matrix) -> int:
        laws = torch.tensor(law.parameters, device=A.storage.device)
        return int(self.launch_sample(A, scoring, laws, law.shape, law.rescale, draw, out))

    def keep_largest_of(
        self, A: Matrix, scoring: Scoring, pattern: NM, out: Matrix
    ) -> tuple[int, int]:
        nnz, nonfinite = self.launch_keep_largest_of(A, scoring, pattern, out).tolist()
        return nnz, nonfinite

    def sample_of(
        self, A: Matrix, scoring: Scoring, pattern: NM, shape: Shape, rescale: bool, draw: Draw,
        out: Matrix,
    ) -> tuple[int, int]:  # fmt: skip
        counts = self.launch_sample_of(A, scoring, pattern, shape, rescale, draw, out)
        nnz, nonfinite = counts.tolist()
        return nnz, nonfinite

    def _count_between(self, A: Matrix, plan: Plan, lowest: int, highest: int) -> torch.Tensor:
        table = torch.empty(plan.segments, dtype=torch.int32, device=A.storage.device)
        plan.launch(
            kernels.count_between, A.storage, table, lowest, highest, WHOLE_ROWS=plan.whole_rows
        )
        return table


def _tensor(array: Any) -> torch.Tensor:
    tensor: torch.Tensor = array if module_of(array) == "torch" else from_dlpack(array)
    return tensor.detach()


def _numpy(tensor: torch.Tensor) -> Any:
    return tensor.cpu().numpy()


def _find(running: torch.Tensor, wanted: int) -> tuple[int, int]:
    """Where a running count first reaches `wanted`, and how many are wanted from there."""
    i = int(torch.searchsorted(running, wanted))
    return i, wanted - (int(running[i - 1]) if i > 0 else 0)


GPU = GPUBackend()
