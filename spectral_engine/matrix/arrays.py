"""A weight of any array library as the torch matrix that its spectrum is taken of."""

import math
from typing import Any

import numpy as np
import torch
from spectral_kernels import module_of

_CHUNK = 1 << 22
#: What torch computes with; of wider unsigned integers and of float8 it only stores.
_DTYPES = (
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
)  # fmt: skip


def as_tensor(array: Any, argument: str = "weight") -> torch.Tensor:
    """The array as a detached torch tensor, without a copy where torch can have its memory.

    Args:
        array: NumPy, torch or CuPy, of floating-point numbers or integers.
        argument: its name, for messages.

    Raises:
        TypeError: no array; a sparse, nested or masked one, of which something would be lost; one
            of another machine's byte order, of complex or truth values, or of a dtype that torch
            does not compute with.
        ValueError: on the meta device.
    """
    tensor = _as_any_tensor(array, argument)
    if tensor.is_nested:
        raise TypeError(
            f"{argument}: expected a dense tensor; got a nested tensor: give its matrices one by "
            "one (tensor.unbind()), or tensor.to_padded_tensor(0)"
        )
    if tensor.layout != torch.strided:
        raise TypeError(f"{argument}: expected a dense tensor; got layout {tensor.layout}")
    if tensor.dtype not in _DTYPES:
        raise TypeError(f"{argument}: expected real numbers; got {tensor.dtype}")
    if tensor.is_meta:
        raise ValueError(f"{argument}: expected values; got a tensor on the meta device")
    return tensor


def _as_any_tensor(array: Any, argument: str) -> torch.Tensor:
    if isinstance(array, torch.Tensor):
        return array.detach()
    if isinstance(array, np.ndarray):
        return _of_numpy(array, argument)
    if module_of(array) == "cupy":
        tensor: torch.Tensor = torch.utils.dlpack.from_dlpack(array)
        return tensor
    raise TypeError(
        f"{argument}: expected a NumPy array, a torch tensor or a CuPy array; "
        f"got {type(array).__module__}.{type(array).__qualname__}"
    )


def _of_numpy(array: np.ndarray[Any, Any], argument: str) -> torch.Tensor:
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(
            f"{argument}: expected a plain array; got a masked array, of which the mask would be "
            "ignored: give array.filled(0), or array.data"
        )
    if not array.dtype.isnative:
        raise TypeError(
            f"{argument}: expected this machine's byte order; got dtype {array.dtype.str!r}: "
            "give array.astype(array.dtype.newbyteorder('='))"
        )
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()  # torch has no read-only tensors and no negative strides
    try:
        return torch.from_numpy(array)
    except TypeError as error:  # strings, objects, dates, float128
        raise TypeError(f"{argument}: expected real numbers; got dtype {array.dtype}") from error
    except ValueError as error:  # strides that are no whole number of entries
        raise ValueError(f"{argument}: {error}") from error


def as_matrix(array: Any, argument: str = "weight") -> torch.Tensor:
    """The (shape[0], -1) view of an array of two or more dimensions, as a torch tensor.

    Raises:
        TypeError: as `as_tensor`. ValueError: fewer than two dimensions, or empty.
    """
    tensor = as_tensor(array, argument)
    if tensor.ndim < 2 or tensor.numel() == 0:
        raise ValueError(
            f"{argument}: expected two dimensions or more, none empty; got {tuple(tensor.shape)}"
        )
    return tensor.reshape(tensor.shape[0], -1)


def check_rank(rank: Any, smaller: int | None = None) -> int:
    """`rank` as an int of at least 1, and at most `smaller`, the min(m, n) of a matrix.

    Raises:
        TypeError, ValueError: what was expected and what came.
    """
    if isinstance(rank, bool) or not isinstance(rank, int | np.integer):
        raise TypeError(f"rank: expected an integer; got {type(rank).__name__}")
    if rank < 1:
        raise ValueError(f"rank: expected at least 1; got {rank}")
    if smaller is not None and rank > smaller:
        raise ValueError(f"rank: expected 1 to min(m, n) = {smaller}; got {rank}")
    return int(rank)


def frobenius_norm(matrix: torch.Tensor, other: torch.Tensor | None = None) -> float:
    """||A||_F, or ||A - S||_F, summed in float64 over runs of rows: no full-size copy.

    Each run is scaled by its largest entry, so that squares neither overflow nor vanish.
    """
    step = max(1, _CHUNK // matrix.shape[1])
    total = 0.0
    for first in range(0, matrix.shape[0], step):
        rows = matrix[first : first + step].double()
        if other is not None:
            rows = rows - other[first : first + step].double()
        largest = largest_magnitude(rows)
        if largest != 0.0:  # also NaN, which must show
            scaled = float(torch.linalg.vector_norm(rows / largest))
            total = math.hypot(total, largest * scaled)
    return total


def largest_magnitude(tensor: torch.Tensor) -> float:
    """max |A_ij|, without a copy; NaN if there is one."""
    low, high = torch.aminmax(tensor)
    return float(torch.maximum(-low, high))
