"""The CPU backend: NumPy arrays and torch CPU tensors, without a copy, to the Numba kernels."""

from collections.abc import Iterator
from typing import Any

import numba
import numpy as np

from spectral_kernels import budget as bg
from spectral_kernels.backend import (
    Draw,
    Float32,
    Int64,
    LawTable,
    Matrix,
    Scoring,
    Thresholds,
    UInt32,
    module_of,
)  # fmt: skip
from spectral_kernels.cpu import kernels, rows
from spectral_kernels.cpu.blocks import BFLOAT16, FLOAT16, NATIVE
from spectral_kernels.laws import Base, Shape
from spectral_kernels.stream import split_seed

KINDS = {"float16": FLOAT16, "bfloat16": BFLOAT16, "float32": NATIVE, "float64": NATIVE}
_NONE = np.empty(0, np.float32)
#: Tasks that each hold a table of 2^18 counts, 1 MiB.
_MAX_TABLES = 4
_MAX_TASK_ENTRIES = 2**31


class CPUBackend:
    """See `Backend`. Work is shared by `numba.get_num_threads()` threads."""

    name = "cpu"

    def matrix(self, array: Any) -> Matrix:
        dtype = str(array.dtype).removeprefix("torch.")
        m = array.shape[0]
        if module_of(array) == "torch":
            tensor = array.detach().contiguous()
            if dtype == "bfloat16":  # unknown to NumPy
                import torch  # noqa: PLC0415 (NumPy users need no torch)

                tensor = tensor.view(torch.int16)
            flat = tensor.numpy().reshape(-1)
        else:
            flat = np.ascontiguousarray(array).reshape(-1)
        if dtype in ("float16", "bfloat16"):
            flat = flat.view(np.uint16)
        return Matrix(flat, m, flat.size // m, dtype)

    def empty_like(self, array: Any) -> Any:
        if module_of(array) != "torch":
            return np.empty(array.shape, array.dtype)
        # NumPy asks for huge pages, which spares the page faults that cost more than the kernel.
        import torch  # noqa: PLC0415 (NumPy users need no torch)

        bytes_ = np.empty(array.numel() * array.element_size(), np.uint8)
        return torch.from_numpy(bytes_).view(array.dtype).view(array.shape)

    def vector(self, values: Any) -> Float32:
        if module_of(values) == "torch":
            values = values.detach().float().numpy()
        return np.ascontiguousarray(values, np.float32)

    def histogram(self, A: Matrix, scoring: Scoring) -> tuple[Int64, Int64]:
        count, low = np.zeros((2, bg.BINS), np.int64)
        for part, arguments in _chunks(A, scoring):
            more = kernels.histogram(part.storage, *arguments, _tasks(part))
            count += more[0]
            low += more[1]
        return count, low

    def refine(self, A: Matrix, scoring: Scoring, cut: int) -> tuple[Int64, Int64]:
        total = np.zeros(1, np.int64)
        for part, arguments in _chunks(A, scoring):
            tasks = max(min(_tasks(part), _MAX_TABLES), -(-part.size // _MAX_TASK_ENTRIES))
            total = total + kernels.refine(part.storage, *arguments, cut, tasks)
        low = np.flatnonzero(total)
        return low, total[low]

    def tie_stop(self, A: Matrix, scoring: Scoring, pattern: int, wanted: int) -> int:
        first_row = 0
        for part, arguments in _chunks(A, scoring):
            ties = np.cumsum(kernels.count_ties(part.storage, *arguments, np.uint32(pattern)))
            if wanted <= ties[-1]:
                i = int(np.searchsorted(ties, wanted))
                before = int(ties[i - 1]) if i > 0 else 0
                kind, _, n, *rest = arguments
                column = kernels.tie_column(
                    part.storage, kind, n, i, *rest, np.uint32(pattern), wanted - before
                )
                return int((first_row + i) * A.n + column)
            wanted -= int(ties[-1])
            first_row += part.m
        return A.size

    def row_laws(
        self, A: Matrix, scoring: Scoring, shape: Shape, parameter: float, budget: int
    ) -> tuple[Float32, int]:
        laws, broken = [], 0
        for part, arguments in _chunks(A, scoring):
            table, bad = rows.row_laws(
                part.storage, *arguments, int(shape), parameter, budget, _tasks(part)
            )
            laws.append(table)
            broken += int(bad)
        return np.concatenate(laws), broken

    def row_thresholds(self, A: Matrix, scoring: Scoring, budget: int) -> tuple[UInt32, Int64, int]:
        patterns, stops, broken = [], [], 0
        for part, arguments in _chunks(A, scoring):
            found = rows.row_thresholds(part.storage, *arguments, budget, _tasks(part))
            patterns.append(found[0])
            stops.append(found[1])
            broken += int(found[2])
        return np.concatenate(patterns), np.concatenate(stops), broken

    def row_l1(self, A: Matrix) -> Float32:
        sums: Float32 = rows.row_l1(A.storage, KINDS[A.dtype], A.m, A.n)
        return sums

    def keep_largest(self, A: Matrix, scoring: Scoring, thresholds: Thresholds, out: Matrix) -> int:
        kept, first_row = 0, 0
        by_row = len(thresholds.patterns) > 1
        for part, arguments in _chunks(A, scoring):
            span = slice(first_row, first_row + part.m) if by_row else slice(None)
            stops = thresholds.tie_stops[span] - (0 if by_row else first_row * A.n)
            target = _rows(out, first_row, part.m)
            kept += kernels.keep_largest(
                part.storage, target, *arguments, thresholds.patterns[span], stops, by_row,
                _tasks(part),
            )  # fmt: skip
            first_row += part.m
        return int(kept)

    def sample(self, A: Matrix, scoring: Scoring, law: LawTable, draw: Draw, out: Matrix) -> int:
        kept, first_row = 0, 0
        by_row = len(law.parameters) > 1
        k0, k1 = split_seed(draw.seed)
        for part, arguments in _chunks(A, scoring):
            span = slice(first_row, first_row + part.m) if by_row else slice(None)
            target = _rows(out, first_row, part.m)
            kept += kernels.sample(
                part.storage, target, *arguments, law.parameters[span], by_row, int(law.shape),
                law.rescale, np.uint64(k0), np.uint64(k1), np.uint64(draw.stream),
                draw.row + first_row, draw.column, _tasks(part),
            )  # fmt: skip
            first_row += part.m
        return int(kept)

    def all_finite(self, A: Matrix) -> bool:
        count, _ = self.histogram(A, Scoring())
        finite: bool = not count[bg.FINITE_BINS :].any()
        return finite


def _tasks(part: Matrix) -> int:
    """Runs of work: a few per thread, so that an uneven machine does not wait for one of them."""
    return min(4 * numba.get_num_threads(), -(-part.size // 4096))


def _rows(out: Matrix, first: int, count: int) -> Any:
    return out.storage[first * out.n : (first + count) * out.n]


def _chunks(A: Matrix, scoring: Scoring) -> Iterator[tuple[Matrix, tuple[Any, ...]]]:
    """The matrix whole, or in runs of rows small enough that B = left @ right is a small buffer."""
    weights = np.asarray(scoring.weights, np.float32)
    kind = KINDS[A.dtype]
    row = _NONE if scoring.row is None else scoring.row
    column = _NONE if scoring.column is None else scoring.column
    if scoring.base == Base.MAGNITUDE:
        yield A, (kind, A.m, A.n, int(scoring.base), _NONE, weights, row, column)
        return
    # One part in 64 of input and output together, and at least what keeps a matrix product busy.
    buffer_bytes = max(1 << 20, 2 * A.storage.nbytes // 64)
    step = min(A.m, max(1, buffer_bytes // (4 * A.n)))
    buffer = np.empty((step, A.n), np.float32)
    for first in range(0, A.m, step):
        size = min(step, A.m - first)
        B = np.matmul(scoring.left[first : first + size], scoring.right, out=buffer[:size])
        part = Matrix(_rows(A, first, size), size, A.n, A.dtype)
        span = row[first : first + size] if scoring.row is not None else row
        yield part, (kind, size, A.n, int(scoring.base), B.reshape(-1), weights, span, column)


CPU = CPUBackend()
