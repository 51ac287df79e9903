"""The CPU backend: NumPy arrays and torch CPU tensors, without a copy, to the Numba kernels."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numba
import numpy as np

from spectral_kernels._numba import on_one_thread
from spectral_kernels.backends.cpu import kernels, nm, rows, tiles
from spectral_kernels.backends.cpu.chunks import BFLOAT16, FLOAT16, NATIVE
from spectral_kernels.backends.host_pipeline import HostPipeline
from spectral_kernels.backends.protocol import (
    Draw,
    Float32,
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
from spectral_kernels.reference.laws import Base, Law, Shape
from spectral_kernels.reference.patterns import NM, Blocks
from spectral_kernels.reference.stream import split_seed

KINDS = {"float16": FLOAT16, "bfloat16": BFLOAT16, "float32": NATIVE, "float64": NATIVE}
_NONE = np.empty(0, np.float32)
#: Tasks that each hold a table of 2^18 counts, 1 MiB.
_MAX_TABLES = 8
_MAX_TASK_ENTRIES = 2**31
#: Entries of a bin that a task keeps, to be sorted; a table serves where there are more.
_MOST_GATHERED = 1 << 16
#: Entries that are worth one more thread.
_THREAD_ENTRIES = 1 << 18


class CPUBackend:
    """See `Backend`. Work is shared by `numba.get_num_threads()` threads."""

    name = "cpu"

    def matrix(self, array: Any) -> Matrix:
        dtype = str(array.dtype).removeprefix("torch.")
        m = array.shape[0]
        if module_of(array) == "torch":
            tensor = array.detach().resolve_neg().contiguous()
            if dtype == "bfloat16":  # unknown to NumPy
                import torch  # noqa: PLC0415 (NumPy users need no torch)

                tensor = tensor.view(torch.int16)
            flat = tensor.numpy().reshape(-1)
        else:
            flat = _writable(np.ascontiguousarray(array)).reshape(-1)
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

    def vector(self, values: Any, beside: Matrix | None = None) -> Float32:
        if module_of(values) == "torch":
            values = values.detach().resolve_neg().float().numpy()
        return np.ascontiguousarray(values, np.float32)

    def pipeline(self, law: Law, rescale: bool) -> Pipeline:
        return HostPipeline(self, law, rescale)

    def histogram(self, A: Matrix, scoring: Scoring) -> tuple[Int64, Int64]:
        with _threads(A) as tasks:
            count, low = kernels.histogram(A.storage, *_arguments(A, scoring), tasks)
        return count, low

    def refine(self, A: Matrix, scoring: Scoring, cut: int) -> tuple[Int64, Int64]:
        with _threads(A) as tasks:
            arguments = _arguments(A, scoring)
            room = min(_MOST_GATHERED, -(-A.size // tasks))
            found, held = kernels.gather(A.storage, *arguments, cut, room, tasks)
            if cut > 0 and int(held.max()) <= room:
                values = np.concatenate(
                    [part[:count] for part, count in zip(found, held, strict=True)]
                )
                low, counts = np.unique(values, return_counts=True)
                return low.astype(np.int64), counts
            tables = 1 if tasks == 1 else min(tasks, numba.get_num_threads(), _MAX_TABLES)
            tables = max(tables, -(-A.size // _MAX_TASK_ENTRIES))
            total = kernels.refine(A.storage, *arguments, cut, tables)
        low = np.flatnonzero(total)
        return low, total[low]

    def tie_stop(self, A: Matrix, scoring: Scoring, bits: int, wanted: int) -> int:
        arguments = _arguments(A, scoring)
        with _threads(A):
            ties = np.cumsum(kernels.count_ties(A.storage, *arguments, np.uint32(bits)))
        i = int(np.searchsorted(ties, wanted))
        before = int(ties[i - 1]) if i > 0 else 0
        kind, _, n, *rest = arguments
        column = kernels.tie_column(A.storage, kind, n, i, *rest, np.uint32(bits), wanted - before)
        return int(i * A.n + column)

    def row_laws(
        self, A: Matrix, scoring: Scoring, shape: Shape, parameter: float, budget: int
    ) -> tuple[Float32, int]:
        with _threads(A) as tasks:
            laws, nonfinite = rows.row_laws(
                A.storage, *_arguments(A, scoring), int(shape), parameter, budget, tasks
            )
        return laws, int(nonfinite)

    def row_thresholds(self, A: Matrix, scoring: Scoring, budget: int) -> tuple[UInt32, Int64, int]:
        with _threads(A) as tasks:
            bits, stops, nonfinite = rows.row_thresholds(
                A.storage, *_arguments(A, scoring), budget, tasks
            )
        return bits, stops, int(nonfinite)

    def row_l1(self, A: Matrix) -> Float64:
        with _threads(A):
            sums: Float64 = rows.row_l1(A.storage, KINDS[A.dtype], A.m, A.n)
        return sums

    def keep_largest(self, A: Matrix, scoring: Scoring, thresholds: Thresholds, out: Matrix) -> int:
        by_row = len(thresholds.bits) > 1
        with _threads(A) as tasks:
            kept = kernels.keep_largest(
                A.storage, out.storage, *_arguments(A, scoring), thresholds.bits,
                thresholds.tie_stops, by_row, tasks,
            )  # fmt: skip
        return int(kept)

    def sample(self, A: Matrix, scoring: Scoring, law: LawTable, draw: Draw, out: Matrix) -> int:
        by_row = len(law.parameters) > 1
        k0, k1 = split_seed(draw.seed)
        with _threads(A) as tasks:
            kept = kernels.sample(
                A.storage, out.storage, *_arguments(A, scoring), law.parameters, by_row,
                int(law.shape), law.rescale, np.uint64(k0), np.uint64(k1),
                np.uint64(draw.stream), draw.row, draw.column, tasks,
            )  # fmt: skip
        return int(kept)

    def keep_largest_of(
        self, A: Matrix, scoring: Scoring, pattern: NM, out: Matrix
    ) -> tuple[int, int]:
        with _threads(A) as tasks:
            nnz, nonfinite = nm.keep_largest(
                A.storage, out.storage, *_arguments(A, scoring), pattern.keep, pattern.of, tasks
            )
        return int(nnz), int(nonfinite)

    def sample_of(
        self, A: Matrix, scoring: Scoring, pattern: NM, shape: Shape, rescale: bool, draw: Draw,
        out: Matrix,
    ) -> tuple[int, int]:  # fmt: skip
        k0, k1 = split_seed(draw.seed)
        with _threads(A) as tasks:
            nnz, nonfinite = nm.sample(
                A.storage, out.storage, *_arguments(A, scoring), pattern.keep, pattern.of,
                int(shape), rescale, np.uint64(k0), np.uint64(k1), np.uint64(draw.stream),
                draw.row, draw.column, tasks,
            )  # fmt: skip
        return int(nnz), int(nonfinite)

    def block_scores(self, A: Matrix, scoring: Scoring, pattern: Blocks) -> Float32:
        with _threads(A):
            scores: Float32 = tiles.block_scores(
                A.storage, *_arguments(A, scoring), pattern.rows, pattern.columns
            )
        return scores

    def keep_blocks(self, A: Matrix, pattern: Blocks, kept: Float32, out: Matrix) -> int:
        with _threads(A):
            nnz = tiles.keep_blocks(
                A.storage, out.storage, KINDS[A.dtype], A.m, A.n, pattern.rows, pattern.columns,
                (kept != 0).astype(np.uint8),
            )  # fmt: skip
        return int(nnz)

    def not_finite(self, A: Matrix) -> int:
        count, _ = self.histogram(A, Scoring())
        return int(count[bg.FINITE_BINS :].sum())

    def captured(self) -> bool:
        return False

    def all_finite(self, A: Matrix) -> bool:
        return self.not_finite(A) == 0


class _Unlocked:
    """An array's memory, said to be writable; it keeps the array alive."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface
        self.array = array


def _writable(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The same memory; kernels only read it, and would be compiled again for read-only arrays."""
    return array if array.flags.writeable else np.asarray(_Unlocked(array))


@contextmanager
def _threads(A: Matrix) -> Iterator[int]:
    """Let a kernel use as many threads as the matrix is worth; gives the runs of work to cut.

    Waking threads costs more than a small matrix does, most of all where others use the cores.
    """
    if on_one_thread():  # and Numba would start threads if it were asked for their number
        yield 1
        return
    torch = sys.modules.get("torch")
    torch_threads = 0 if torch is None else torch.get_num_threads()
    allowed = numba.get_num_threads()  # which starts the threads, if none have been
    used = max(1, min(allowed, A.size // _THREAD_ENTRIES))
    numba.set_num_threads(used)
    try:
        # A few runs for each thread, so that an uneven machine does not wait for one of them.
        yield 1 if used == 1 else 4 * used
    finally:
        numba.set_num_threads(allowed)
        # Where both use one OpenMP library, Numba's start sets the number for torch as well.
        if torch is not None and torch.get_num_threads() != torch_threads:
            torch.set_num_threads(torch_threads)


def _arguments(A: Matrix, scoring: Scoring) -> tuple[Any, ...]:
    """What all kernels take after the matrix: kind, shape and score."""
    factors = (_NONE, _NONE, 0)
    if scoring.base != Base.MAGNITUDE:
        factors = (scoring.left.reshape(-1), scoring.right.reshape(-1), scoring.right.shape[0])
    return (
        KINDS[A.dtype],
        A.m,
        A.n,
        int(scoring.base),
        factors,
        np.asarray(scoring.weights, np.float32),
        _NONE if scoring.row is None else scoring.row,
        _NONE if scoring.column is None else scoring.column,
    )


CPU = CPUBackend()
