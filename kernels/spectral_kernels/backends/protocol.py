"""What a backend is, and the one place that chooses it from an array's type and device.

A backend works on a `Matrix`, the (m, n) view of the user's array in the form that its kernels
read. NumPy arrays and torch tensors on the CPU go to the Numba kernels; torch tensors on CUDA and
CuPy arrays go to the Triton kernels. Nothing here starts a CUDA context or compiles a kernel.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from spectral_kernels.reference.laws import Base, Shape

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


@dataclass(frozen=True)
class Thresholds:
    """Solved thresholds: float32 bit patterns (groups,), and the index under which ties are kept.

    The index is flat where the group is the tensor, the column where it is a row.
    """

    patterns: UInt32
    tie_stops: Int64 = field(default_factory=lambda: np.zeros(1, np.int64))


class Backend(Protocol):
    """The operations that every backend has; `oracle` says what each must return, bit for bit.

    A budget is at least 1.
    """

    name: str

    def matrix(self, array: Any) -> Matrix:
        """The (shape[0], -1) view of an array; copies only what is not contiguous."""
        ...

    def empty_like(self, array: Any) -> Any:
        """A contiguous array of the same kind, shape and dtype."""
        ...

    def vector(self, values: Any, beside: Matrix | None = None) -> Any:
        """A float32 array of the backend's own kind, on the matrix's device if there is one."""
        ...

    def histogram(self, A: Matrix, scoring: Scoring) -> tuple[Int64, Int64]:
        """(count, low), (8192,) each."""
        ...

    def refine(self, A: Matrix, scoring: Scoring, cut: int) -> tuple[Int64, Int64]:
        """The low bits that occur in bin `cut`, ascending, and how often."""
        ...

    def tie_stop(self, A: Matrix, scoring: Scoring, pattern: int, wanted: int) -> int:
        """The flat index just after the `wanted`-th score that equals `pattern`."""
        ...

    def row_laws(
        self, A: Matrix, scoring: Scoring, shape: Shape, parameter: float, budget: int
    ) -> tuple[Float32, int]:
        """Law parameters (m, 4) with each row its own budget; number of scores not finite."""
        ...

    def row_thresholds(self, A: Matrix, scoring: Scoring, budget: int) -> tuple[UInt32, Int64, int]:
        """Threshold patterns (m,) and tie columns (m,) of rows; number of scores not finite."""
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

    def not_finite(self, A: Matrix) -> Any:
        """How many entries are not finite as float32: an int, or unread on the device."""
        ...

    def captured(self) -> bool:
        """Whether calls are being captured in a CUDA graph, so that nothing can be read."""
        ...

    def all_finite(self, A: Matrix) -> bool:
        """Whether every entry is finite."""
        ...


def module_of(array: Any) -> str:
    """The package that an array's type comes from: "numpy", "torch", "cupy" or another."""
    return type(array).__module__.partition(".")[0]


def backend_for(array: Any, argument: str = "weight") -> Backend:
    """The backend that handles `array`.

    Raises:
        TypeError: not a NumPy array, torch tensor or CuPy array, or on a device with no backend.
        RuntimeError: a CUDA array where Triton is not installed; says what to install.
    """
    package = module_of(array)
    if isinstance(array, np.ndarray):
        device = "cpu"
    elif package == "torch" and hasattr(array, "device"):
        device = array.device.type
    elif package == "cupy" and hasattr(array, "__dlpack__"):
        device = "cuda"
    else:
        device = ""
    if device == "cpu":
        from spectral_kernels.backends.cpu.backend import CPU  # noqa: PLC0415 (Numba takes half a second)

        return CPU
    if device == "cuda":
        try:
            from spectral_kernels.backends.gpu.backend import GPU  # noqa: PLC0415 (Triton may be missing)
        except ModuleNotFoundError as error:
            raise RuntimeError(
                f"{argument}: arrays on CUDA need {error.name}; install it with "
                f"`pip install {error.name}`"
            ) from error
        gpu: Backend = GPU
        return gpu
    where = f" on device {device!r}" if device else ""
    raise TypeError(
        f"{argument}: expected a NumPy array, a torch tensor on cpu or cuda, or a CuPy array; "
        f"got {type(array).__module__}.{type(array).__qualname__}{where}"
    )
