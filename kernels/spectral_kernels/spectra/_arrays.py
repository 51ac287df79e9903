"""Any array library: its namespace, the working precision, the scale and the test matrix.

NumPy, CuPy, torch and every other library that follows the Python array API standard come in
through array-api-compat. Other modules ask which library it is only where one has a faster way of
its own, a sparse format, or a switch that lowers the precision of products (`precision`).
"""

from typing import Any, TypeAlias

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from spectral_kernels._validation import require_plain
from spectral_kernels.reference import stream as random_stream

Array: TypeAlias = Any
Namespace: TypeAlias = Any

#: The precision in which a matrix of each dtype is worked on, and in which results come back.
WORKING_DTYPE = {
    "float16": "float32",
    "bfloat16": "float32",
    "float32": "float32",
    "float64": "float64",
}


def namespace(A: Array, name: str) -> Namespace:
    """The array API namespace of `A`; TypeError where `A` is no dense, plain array."""
    dense = array_api_compat.is_array_api_obj(A)
    if dense and array_api_compat.is_torch_array(A):
        dense = str(A.layout) == "torch.strided"
    if not dense:
        raise TypeError(
            f"{name}: expected a dense array (NumPy, CuPy, torch or another array API library); "
            f"got {type(A).__module__}.{type(A).__qualname__}"
        )
    require_plain(A, name)
    return array_api_compat.array_namespace(A)


def working_dtype(xp: Namespace, dtype: Any, name: str) -> Any:
    """The dtype in which arithmetic is done on `dtype`: float32, or float64 for float64."""
    kind = str(dtype).rsplit(".", maxsplit=1)[-1]
    if kind not in WORKING_DTYPE:
        raise TypeError(f"{name}: expected dtype {', '.join(WORKING_DTYPE)}; got {kind}")
    return getattr(xp, WORKING_DTYPE[kind])


def as_matrices(xp: Namespace, A: Array, name: str, *, widen: bool = True) -> Array:
    """`A` (..., m, n) in its working precision, uncopied where it has it already.

    Without `widen` it stays in its own precision, which is checked all the same.
    """
    A = A.detach() if array_api_compat.is_torch_array(A) else xp.asarray(A)
    if A.ndim < 2 or 0 in A.shape:
        raise ValueError(
            f"{name}: expected shape (..., m, n) with no empty dimension; got {tuple(A.shape)}"
        )
    dtype = working_dtype(xp, A.dtype, name)
    return xp.astype(A, dtype, copy=False) if widen else A


def to_host(x: Array) -> NDArray[Any]:
    """A NumPy copy or view of `x`, which may live on an accelerator."""
    if array_api_compat.is_torch_array(x) or array_api_compat.is_cupy_array(x):
        x = array_api_compat.to_device(x, "cpu")
    host: NDArray[Any] = np.asarray(x)
    return host


def largest_entries(xp: Namespace, A: Array, name: str) -> NDArray[np.floating]:
    """max |A_ij| of each matrix of (..., m, n), on the host; ValueError on NaN or infinity."""
    # The maximum of |A| would write a second A; two reductions only read it.
    dtype = working_dtype(xp, A.dtype, name)  # NumPy has no bfloat16
    high, low = (to_host(xp.astype(reduce(A, axis=(-2, -1)), dtype)) for reduce in (xp.max, xp.min))
    finite = np.isfinite(high) & np.isfinite(low)
    if not finite.all():
        index = tuple(int(i) for i in np.argwhere(~finite)[0])
        where = f" in matrix {index[0] if len(index) == 1 else index} of the batch" if index else ""
        raise ValueError(f"{name}: expected finite entries; got NaN or infinity{where}")
    largest: NDArray[np.floating] = np.maximum(np.abs(high), np.abs(low))
    return largest


def unit_scales(largest: NDArray[np.floating]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Two powers of two whose product brings `largest` into [1/2, 1).

    Two, because one alone may overflow; powers of two, because they round nothing. A product
    A v becomes ((v * first) A) * second, so that neither A nor the squares of the result leave
    the range of float32 for entries of 1e-38 or 1e38.
    """
    exponent = -np.frexp(largest)[1].astype(np.int64)
    first = exponent // 2
    return np.ldexp(1.0, first), np.ldexp(1.0, exponent - first)


def test_matrix(
    xp: Namespace,
    shape: tuple[int, int],
    seed: int,
    stream: int,
    *,
    column_offset: int,
    like: Array,
) -> Array:
    """Entries uniform on [-1, 1), from the project's stream: (word >> 8) / 2^23 - 1.

    They are multiples of 2^-23, hence the same numbers in float32 and float64 and on every
    library. Column j of the stream is column j of the test matrix whatever the block size.
    """
    draws = random_stream.draws(shape, seed, stream, column_offset=column_offset)
    half = random_stream.UNIT // 2
    entries = (draws.astype(np.float64) - half) / half
    return xp.asarray(entries, dtype=like.dtype, device=array_api_compat.device(like))
