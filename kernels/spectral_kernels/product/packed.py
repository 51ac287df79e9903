"""The packed form of a matrix: its values, one bit for each entry, and where its rows start."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from spectral_kernels.product import arrays


@dataclass(frozen=True, eq=False)
class Packed:
    """A matrix (m, n) without its zeros. Arrays are NumPy, or torch on one device.

    This is the layout that compressed-tensors wrote under the names `compressed`, `bitmask`,
    `row_offsets` and `shape` until its version 0.14.

    Args:
        values: (nnz,), float16, bfloat16, float32 or float64: row after row, in the order of
            columns, every entry whose bits are not those of +0. So -0 and NaN are kept.
        bitmask: uint8 (m, ceil(n / 8)), a bit for each entry, 1 where it is in `values`; the
            first of eight columns is in the lowest bit, the bits past column n are 0.
        row_offsets: int32 or int64 (m,), where each row starts in `values`.
        shape: (m, n).
    """

    values: Any
    bitmask: Any
    row_offsets: Any
    shape: tuple[int, int]

    @property
    def dtype(self) -> str:
        """The values' dtype, for example "bfloat16"."""
        return str(self.values.dtype).removeprefix("torch.")

    @property
    def nnz(self) -> int:
        """How many entries are stored."""
        return int(self.values.shape[0])


def pack(weight: Any) -> Packed:
    """Pack a matrix.

    Args:
        weight: (m, n), float16, bfloat16, float32 or float64, NumPy or torch on any device.

    Returns:
        Its packed form, arrays of the same kind on the same device; offsets are int32 where that
        counts the values.

    Raises:
        TypeError: no array, or of another dtype.
        ValueError: not two dimensions, or one of them 0.

    >>> import numpy as np
    >>> packed = pack(np.array([[0.0, 1.5, 0.0], [2.0, 0.0, -3.0]], np.float32))
    >>> packed.values, packed.bitmask.tolist(), packed.row_offsets
    (array([ 1.5,  2. , -3. ], dtype=float32), [[2], [5]], array([0, 1]))
    """
    dtype = arrays.dtype_of(weight, "weight")
    if weight.ndim != 2 or 0 in weight.shape:
        raise ValueError(
            f"weight: expected (m, n), neither of them 0; got shape {tuple(weight.shape)}"
        )
    m, n = (int(size) for size in weight.shape)
    if arrays.on_gpu(weight):
        from spectral_kernels.product.gpu import packing as gpu  # noqa: PLC0415 (needs Triton)

        return Packed(*gpu.pack(weight), (m, n))
    from spectral_kernels.product.cpu import packing  # noqa: PLC0415 (starts the compiler)

    bits, offsets, nnz = packing.bits_and_offsets(arrays.words_of(weight), m, n)
    offsets = offsets.astype(np.int32 if nnz < 2**31 else np.int64)
    values = arrays.empty_like(weight, (nnz,), dtype)
    packing.gather(arrays.words_of(weight), bits, offsets, arrays.words_of(values), n)
    bitmask, row_offsets = arrays.alike(weight, bits, offsets)
    return Packed(values, bitmask, row_offsets, (m, n))


def check(packed: Packed) -> None:
    """Refuse arrays that do not belong together: kernels would read beyond their ends.

    Raises:
        TypeError: an array of the wrong kind or dtype.
        ValueError: shapes, bits and offsets that do not belong together.
    """
    arrays.dtype_of(packed.values, "values")
    m, n = packed.shape
    expected = {
        "values": (packed.values, (packed.values.shape[0] if packed.values.ndim else 0,), None),
        "bitmask": (packed.bitmask, (m, -(-n // 8)), "uint8"),
        "row_offsets": (packed.row_offsets, (m,), "int32 or int64"),
    }
    for name, (array, shape, dtypes) in expected.items():
        if tuple(array.shape) != shape:
            raise ValueError(f"{name}: expected shape {shape}; got {tuple(array.shape)}")
        found = str(array.dtype).removeprefix("torch.")
        if dtypes is not None and found not in dtypes.split(" or "):
            raise TypeError(f"{name}: expected {dtypes}; got {found}")
        if arrays.is_torch(array) != arrays.is_torch(packed.values):
            raise TypeError(f"{name}: expected {type(packed.values)}; got {type(array)}")
        if arrays.is_torch(array) and array.device != packed.values.device:
            raise ValueError(f"{name}: expected on {packed.values.device}; got {array.device}")
    if arrays.on_gpu(packed.values):
        from spectral_kernels.product.gpu import packing as gpu  # noqa: PLC0415 (needs Triton)

        wrong = gpu.first_wrong_row(packed.bitmask, packed.row_offsets, packed.nnz, n)
    else:
        from spectral_kernels.product.cpu import packing  # noqa: PLC0415 (starts the compiler)

        wrong = packing.first_wrong_row(*_flat(packed), packed.nnz, n)
    if wrong >= 0:
        raise ValueError(
            f"bitmask: its ones and row_offsets do not agree with {packed.nnz} values; "
            f"the first row where they do not is {wrong}"
        )


def _flat(packed: Packed) -> tuple[Any, Any]:
    return arrays.words_of(packed.bitmask), arrays.signed_of(packed.row_offsets)
