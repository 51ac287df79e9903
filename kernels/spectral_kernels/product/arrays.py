"""NumPy arrays and torch tensors on the CPU as what compiled code reads: words of their own width.

A word holds the bits of one entry, so packing knows no dtype, and NaN, -0 and bfloat16 (which NumPy
does not know) need no care.
"""

import sys
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectral_kernels.backends.protocol import DTYPES

Words = NDArray[np.unsignedinteger]

SIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
_WORDS: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def is_torch(array: Any) -> bool:
    """Whether this is a torch tensor; does not import torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def on_gpu(array: Any) -> bool:
    """Whether this is a torch tensor that is not in the processor's memory."""
    return is_torch(array) and array.device.type != "cpu"


def dtype_of(array: Any, name: str) -> str:
    """The name of the array's dtype, one of DTYPES.

    Raises:
        TypeError: neither a NumPy array nor a torch tensor, or another dtype.
    """
    if not (is_torch(array) or isinstance(array, np.ndarray)):
        raise TypeError(f"{name}: expected a NumPy array or torch tensor; got {type(array)}")
    dtype = _name_of(array.dtype)
    if dtype not in DTYPES:
        raise TypeError(f"{name}: expected one of {', '.join(DTYPES)}; got {dtype}")
    return dtype


@lru_cache(maxsize=64)
def _name_of(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def words_of(array: Any) -> Words:
    """The bits of an array's entries, flat; a view where the array is contiguous."""
    if is_torch(array):
        import torch  # noqa: PLC0415 (NumPy users need no torch)

        array = array.detach().contiguous()
        if array.dtype == torch.bfloat16:  # unknown to NumPy
            array = array.view(torch.int16)
        array = array.numpy()
    array = np.ascontiguousarray(array)
    if not array.flags.writeable:  # kernels only read it, and would be compiled again for it
        array = np.asarray(_Unlocked(array))
    words: Words = array.reshape(-1).view(_WORDS[array.itemsize])
    return words


def signed_of(array: Any) -> NDArray[np.signedinteger]:
    """An array of integers, flat, as `words_of` gives it, with their sign."""
    words = words_of(array)
    return words.view(f"int{8 * words.itemsize}")


class _Unlocked:
    """An array's memory, said to be writable; it keeps the array alive."""

    def __init__(self, array: NDArray[Any]) -> None:
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface
        self.array = array


def empty_like(array: Any, shape: tuple[int, ...], dtype: str) -> Any:
    """An array of the same kind (NumPy, or torch on the CPU), not set to anything."""
    if not is_torch(array):
        return np.empty(shape, np.dtype(dtype))
    import torch  # noqa: PLC0415 (NumPy users need no torch)

    return torch.empty(shape, dtype=getattr(torch, dtype))


def alike(array: Any, *made: Any) -> tuple[Any, ...]:
    """NumPy arrays, as torch tensors if `array` is one."""
    if not is_torch(array):
        return made
    import torch  # noqa: PLC0415 (NumPy users need no torch)

    return tuple(torch.from_numpy(one) for one in made)
