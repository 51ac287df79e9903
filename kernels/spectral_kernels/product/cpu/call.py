"""What every operator on the CPU does in a call, whatever form it multiplies by.

x is taken by its address, a kernel runs on the threads that the matrix is worth, y gets x's dtype.
"""

import math
from abc import ABC, abstractmethod
from collections import deque
from typing import Any

import numpy as np

from spectral_kernels._numba import on_one_thread
from spectral_kernels.product import arrays
from spectral_kernels.product.cpu import plain
from spectral_kernels.product.cpu.threads import at_most, every, tasks_of, worth

KINDS = {"float16": plain.FLOAT16, "bfloat16": plain.BFLOAT16}
#: Arrays by which compiled code knows the type of the words at an address.
_LIKE = {size: np.empty(0, f"uint{8 * size}") for size in (2, 4, 8)}
#: The room of an earlier call, for each dtype of sums: one for all operators, since a model has
#: hundreds, and what each would keep after a long prompt is as large as its weights.
_ROOMS: dict[str, deque[Any]] = {name: deque(maxlen=1) for name in ("float32", "float64")}
#: Bytes up to which a room is kept.
KEPT_ROOM = 1 << 24


class Call(ABC):
    """A function of x (..., n) that gives x S^T (..., m) in x's dtype.

    Args:
        values: of S, on the CPU.
        shape: (m, n) of S.
    """

    def __init__(self, values: Any, shape: tuple[int, int]) -> None:
        self._m, self._n = shape
        dtype = str(values.dtype).removeprefix("torch.")
        self._kind = KINDS.get(dtype, plain.NATIVE)
        self._sum = np.dtype("float64" if dtype == "float64" else "float32")
        self._words = arrays.words_of(values)
        #: The values as floats, or as words of 16 bits.
        self._floats = self._words
        if self._kind == plain.NATIVE:
            self._floats = self._words.view(self._sum)
        # The odd 16 keep right-hand sides off each other's places in the cache.
        self._stride = -(-self._n // 64) * 64 + 16
        self._threads = worth(self._m * self._n)
        self._rooms = _ROOMS[self._sum.name]
        self._tensor, self._from_numpy, self._dtypes = _torch_of(values)

    def __call__(self, x: Any) -> Any:
        """x S^T."""
        words = arrays.words_of(x)
        kind = plain.NATIVE
        if words.itemsize == 2:
            kind = KINDS[str(x.dtype).removeprefix("torch.")]
        like, sides = _LIKE[words.itemsize], math.prod(x.shape[:-1])
        Y = self._product(words.ctypes.data, like, kind, sides)
        return _as(x, Y.reshape(*x.shape[:-1], self._m))

    def quick(self, x: Any) -> Any:
        """x S^T of a tensor that nothing has to be done to; None of any other x.

        So many microseconds go into the checks and views of other calls that a small matrix is
        multiplied by in fewer. An address costs less than an array.
        """
        if type(x) is not self._tensor or not x.is_cpu or x.requires_grad or not x.is_contiguous():
            return None
        found, shape = self._dtypes.get(x.dtype), x.shape
        if found is None or not shape or shape[-1] != self._n or x.is_neg():
            return None
        like, kind, dtype = found
        Y = self._product(x.data_ptr(), like, kind, x.numel() // self._n)
        y = self._from_numpy(Y.reshape(*shape[:-1], self._m))
        return y if dtype is None else y.to(dtype)

    @abstractmethod
    def _product(self, address: int, like: Any, kind: int, sides: int) -> Any:
        """Y (sides, m), flat, of the right-hand sides at an address, by the way that is best."""

    def _run(self, kernel: Any, shared_kernel: Any, given: tuple[Any, ...]) -> Any:
        """Run a kernel on one thread, or its twin in as many as the matrix is worth."""
        if self._threads == 1 or on_one_thread():
            return kernel(*given)
        tasks = tasks_of(self._threads)
        if self._threads == every():  # nothing to limit, which would take microseconds
            return shared_kernel(*given, tasks)
        with at_most(self._threads):
            return shared_kernel(*given, tasks)

    def _room(self, size: int) -> Any:
        """So many entries or more, from a multiple of 64 bytes on: those of an earlier call, if
        they are enough and no other thread has them. `_give_back` keeps them for the next.
        """
        try:
            room = self._rooms.pop()
        except IndexError:
            room = None
        if room is None or room.size < size:
            held = np.empty(size + 16, self._sum)
            start = (-held.ctypes.data % 64) // self._sum.itemsize
            room = held[start : start + size]
        return room

    def _give_back(self, room: Any) -> None:
        if room.nbytes <= KEPT_ROOM:
            self._rooms.append(room)


def _torch_of(values: Any) -> tuple[Any, Any, dict[Any, Any]]:
    """What `quick` needs of torch: its tensors' type, what makes one of an array, and for each
    dtype of x an array of its words, their kind and what y must be turned into. (None, None, {})
    for NumPy.
    """
    if not arrays.is_torch(values):
        return None, None, {}
    import torch  # noqa: PLC0415 (NumPy users need no torch)

    own = torch.float64 if values.dtype == torch.float64 else torch.float32
    found = {}
    for name, size in arrays.SIZES.items():
        dtype = getattr(torch, name)
        kind = KINDS.get(name, plain.NATIVE)
        found[dtype] = (_LIKE[size], kind, None if dtype == own else dtype)
    return torch.Tensor, torch.from_numpy, found


def _as(x: Any, Y: Any) -> Any:
    if arrays.is_torch(x):
        import torch  # noqa: PLC0415 (NumPy users need no torch)

        y = torch.from_numpy(Y)
        return y if y.dtype == x.dtype else y.to(x.dtype)
    return Y.astype(x.dtype, copy=False)
