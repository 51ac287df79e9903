"""What a backend is, and the values that its operations take.

A backend works on a `Matrix`, the (m, n) view of the user's array in the form that its kernels
read. `choose` finds the backend of an array.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from spectral_kernels.backends.deferred import Deferred
from spectral_kernels.reference.laws import Base, Law, Shape
from spectral_kernels.reference.patterns import NM, Blocks
from spectral_kernels.reference.stream import UNIT

Int64 = NDArray[np.int64]
UInt32 = NDArray[np.uint32]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

DTYPES = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True)
class Matrix:
    """An array seen as (m, n), row-major. `storage` is what the backend's kernels take."""

    storage: Any
    m: int
    n: int
    dtype: str

    @property
    def size(self) -> int:
        """Number of entries."""
        return self.m * self.n

    def rows(self, first: int, last: int) -> "Matrix":
        """Rows `first` to `last`, without the last, in the same memory."""
        part = self.storage[first * self.n : last * self.n]
        return Matrix(part, last - first, self.n, self.dtype)


@dataclass(frozen=True)
class Scoring:
    """How a matrix is scored; arrays are of the backend's own kind, float32.

    left (m, k) and right (k, n): B = left @ right is the low rank, never formed whole.
    weights: (b, a) of MIXTURE. row (m,), column (n,): factors of the score, or None.
    """

    base: Base = Base.MAGNITUDE
    left: Any = None
    right: Any = None
    weights: tuple[float, float] = (0.0, 0.0)
    row: Any = None
    column: Any = None

    @property
    def plain(self) -> bool:
        """Whether the score is the magnitude of the entry, and nothing else."""
        return self.base == Base.MAGNITUDE and self.row is None and self.column is None

    def rows(self, first: int, last: int) -> "Scoring":
        """The scoring of rows `first` to `last`, without the last."""
        left = None if self.left is None else self.left[first:last]
        row = None if self.row is None else self.row[first:last]
        return Scoring(self.base, left, self.right, self.weights, row, self.column)


@dataclass(frozen=True)
class Draw:
    """Where in the random stream a matrix lies: its (0, 0) is entry (row, column) of `stream`."""

    seed: int = 0
    stream: int = 0
    row: int = 0
    column: int = 0


@dataclass(frozen=True)
class LawTable:
    """Solved laws: parameters float32 (groups, 4) of C, alpha, beta, scale; a group a row, or one.

    `scale` is the power of two that brings the group's largest score under 4. The value of a kept
    entry is divided by its probability if `rescale`.
    """

    parameters: Float32
    shape: Shape = Shape.L1
    rescale: bool = False

    def constants(self) -> Float64:
        """c of p = min(1, c g(s)) of each group, in terms of the score before it is scaled."""
        C, scale = self.parameters[:, 0].astype(np.float64), self.parameters[:, 3]
        power = 2 if self.shape in (Shape.L2, Shape.TRIMMED) else 1
        c: Float64 = C / UNIT * scale.astype(np.float64) ** power
        return c


@dataclass(frozen=True)
class Thresholds:
    """Solved thresholds: their float32 bits (groups,), and the index under which ties are kept.

    The index is flat where the group is the tensor, the column where it is a row.
    """

    bits: UInt32
    tie_stops: Int64 = field(default_factory=lambda: np.zeros(1, np.int64))

    def constants(self) -> Float64:
        """The thresholds themselves."""
        return self.bits.view(np.float32).astype(np.float64)


@dataclass(frozen=True)
class Job:
    """A matrix to sparsify, and where its result goes.

    budget: entries to keep of a group, which is the matrix, or each row under `run_rows`
    deferred: gets what is wrong with the data and only found on the way
    """

    A: Matrix
    out: Matrix
    scoring: Scoring
    draw: Draw
    budget: int
    deferred: Deferred


@dataclass(frozen=True)
class Kept:
    """What became of a job.

    nnz: nonzeros written, an int or an integer on the device
    constants: reads the constant of the law of each group, (groups,); waits for the device
    """

    nnz: Any
    constants: Callable[[], Float64]


class Pipeline(Protocol):
    """The stages after the score, under one law: solve the budget, keep or draw, write."""

    def row_weights(self, A: Matrix, budget: int) -> Any:
        """The row vector of the law, float32 (m,) of the backend's own kind."""
        ...

    def run(self, jobs: Sequence[Job]) -> list[Kept]:
        """Each matrix as one group."""
        ...

    def run_rows(self, job: Job) -> Kept:
        """Each row a group of its own."""
        ...


class Backend(Protocol):
    """The operations that every backend has.

    `reference.oracle` says what each returns, bit for bit; `reference.nm` and
    `reference.patterns.block_scores` do so for patterns. A budget is at least 1. Counts of scores
    that are not finite come last; where one is not 0, all else that is returned means nothing.
    """

    @property
    def name(self) -> str:
        """The name: "cpu" or "gpu"."""
        ...

    def matrix(self, array: Any) -> Matrix:
        """The (shape[0], -1) view of an array; copies only what is not contiguous."""
        ...

    def empty_like(self, array: Any) -> Any:
        """A contiguous array of the same kind, shape and dtype."""
        ...

    def vector(self, values: Any, beside: Matrix | None = None) -> Any:
        """A float32 array of the backend's own kind, on the matrix's device if there is one."""
        ...

    def pipeline(self, law: Law, rescale: bool) -> Pipeline:
        """The stages after the score under a law; `rescale` divides what is kept by p."""
        ...

    def captured(self) -> bool:
        """Whether calls are being captured in a CUDA graph, so that nothing can be read."""
        ...

    def not_finite(self, A: Matrix) -> Any:
        """How many entries are not finite as float32: an int, or unread on the device."""
        ...

    def all_finite(self, A: Matrix) -> bool:
        """Whether every entry is finite."""
        ...

    def histogram(self, A: Matrix, scoring: Scoring) -> tuple[Int64, Int64]:
        """(count, low), (8192,) each."""
        ...

    def refine(self, A: Matrix, scoring: Scoring, cut: int) -> tuple[Int64, Int64]:
        """The low bits that occur in bin `cut`, ascending, and how often."""
        ...

    def tie_stop(self, A: Matrix, scoring: Scoring, bits: int, wanted: int) -> int:
        """The flat index just after the `wanted`-th score of these bits."""
        ...

    def row_thresholds(self, A: Matrix, scoring: Scoring, budget: int) -> tuple[UInt32, Int64, int]:
        """Threshold bits (m,) and tie columns (m,) of rows; number of scores not finite."""
        ...

    def row_l1(self, A: Matrix) -> Float64:
        """||A_i||_1 of each row (m,)."""
        ...

    def keep_largest(self, A: Matrix, scoring: Scoring, thresholds: Thresholds, out: Matrix) -> int:
        """Write A where it is kept, else 0; returns the number of nonzeros written."""
        ...

    def sample(self, A: Matrix, scoring: Scoring, law: LawTable, draw: Draw, out: Matrix) -> int:
        """Draw and write; returns the number of nonzeros written."""
        ...

    def keep_largest_of(
        self, A: Matrix, scoring: Scoring, pattern: NM, out: Matrix
    ) -> tuple[int, int]:
        """Write A where its score is among the largest of its group of M, else 0.

        Returns the nonzeros written and the number of scores not finite.
        """
        ...

    def sample_of(
        self, A: Matrix, scoring: Scoring, pattern: NM, shape: Shape, rescale: bool, draw: Draw,
        out: Matrix,
    ) -> tuple[int, int]:  # fmt: skip
        """Draw in every group of M, and write; returns as `keep_largest_of`."""
        ...

    def block_scores(self, A: Matrix, scoring: Scoring, pattern: Blocks) -> Any:
        """The scores of blocks (m / rows, n / columns), an array of the backend's own kind."""
        ...

    def keep_blocks(self, A: Matrix, pattern: Blocks, kept: Any, out: Matrix) -> int:
        """Write A in the blocks where `kept` is not 0, else 0; returns the nonzeros written."""
        ...


def module_of(array: Any) -> str:
    """The package that an array's type comes from: "numpy", "torch", "cupy" or another.

    Args:
        array: of any type.

    Returns:
        The first part of its type's module.

    >>> import numpy as np
    >>> from spectral_kernels import module_of
    >>> module_of(np.zeros(3))
    'numpy'
    """
    return type(array).__module__.partition(".")[0]
