"""The form of a matrix whose values are far apart: values, and the zeros before each of them."""

from dataclasses import dataclass
from typing import Any

from spectral_kernels.product import arrays


@dataclass(frozen=True, eq=False)
class Deltas:
    """A matrix (m, n) without its zeros, in fewer bytes than a bit for each entry where at most one
    entry in twenty is not zero. Arrays are NumPy, or torch on the CPU.

    Args:
        values: (nnz,), as those of `Packed`.
        deltas: uint8 (bytes,). The entries are counted through all rows, i n + j. A byte under 255
            says how many zeros lie between the value before, at first the start, and the next one;
            255 says that 255 zeros lie here and no value yet, also behind the last value.
        shape: (m, n).
    """

    values: Any
    deltas: Any
    shape: tuple[int, int]

    @property
    def dtype(self) -> str:
        """The values' dtype, for example "bfloat16"."""
        return str(self.values.dtype).removeprefix("torch.")

    @property
    def nnz(self) -> int:
        """How many entries are stored."""
        return int(self.values.shape[0])


def check_arrays(held: Deltas) -> None:
    """Refuse arrays of another kind or dtype; whether the gaps fit is known when they are walked.

    Raises:
        TypeError: an array of the wrong kind or dtype.
        ValueError: not one dimension, or on a GPU.
    """
    arrays.dtype_of(held.values, "values")
    found = str(getattr(held.deltas, "dtype", type(held.deltas))).removeprefix("torch.")
    if found != "uint8":
        raise TypeError(f"deltas: expected uint8; got {found}")
    for name, array in (("values", held.values), ("deltas", held.deltas)):
        if array.ndim != 1:
            raise ValueError(f"{name}: expected one dimension; got {tuple(array.shape)}")
        if arrays.is_torch(array) != arrays.is_torch(held.values):
            raise TypeError(f"{name}: expected {type(held.values)}; got {type(array)}")
        if arrays.on_gpu(array):
            raise ValueError(f"{name}: expected on the CPU; got {array.device}")


def to_deltas(weight: Any) -> Deltas:
    """A matrix as its values and gaps.

    Args:
        weight: (m, n), float16, bfloat16, float32 or float64, NumPy or torch on the CPU.

    Returns:
        Its values, those whose bits are not those of +0, and gaps, of the same kind.

    Raises:
        TypeError: no array, or of another dtype.
        ValueError: not two dimensions, one of them 0, or on a GPU.

    >>> import numpy as np
    >>> held = to_deltas(np.array([[0.0, 1.5, 0.0], [2.0, 0.0, -3.0]], np.float32))
    >>> held.values, held.deltas
    (array([ 1.5,  2. , -3. ], dtype=float32), array([1, 1, 1], dtype=uint8))
    """
    words = _words(weight)
    from spectral_kernels.product.cpu.forms import gaps  # noqa: PLC0415 (starts the compiler)

    count, length = gaps.lengths(words)
    values = arrays.empty_like(weight, (count,), arrays.dtype_of(weight, "weight"))
    deltas = arrays.empty_like(weight, (length,), "uint8")
    gaps.encode(words, arrays.words_of(values), arrays.words_of(deltas))
    m, n = weight.shape
    return Deltas(values, deltas, (int(m), int(n)))


def deltas_length(weight: Any) -> int:
    """How many bytes the gaps of a matrix take; arguments and errors as for `to_deltas`."""
    words = _words(weight)
    from spectral_kernels.product.cpu.forms import gaps  # noqa: PLC0415 (starts the compiler)

    return int(gaps.lengths(words)[1])


def _words(weight: Any) -> Any:
    arrays.dtype_of(weight, "weight")
    if weight.ndim != 2 or 0 in weight.shape:
        raise ValueError(
            f"weight: expected (m, n), neither of them 0; got shape {tuple(weight.shape)}"
        )
    if arrays.on_gpu(weight):
        raise ValueError(f"weight: expected on the CPU; got {weight.device}")
    return arrays.words_of(weight)
