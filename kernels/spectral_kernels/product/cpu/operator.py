"""What an operator on the CPU does in a call: x to rows of floats, a kernel, y to x's dtype."""

import math
import sys
from collections import deque
from functools import lru_cache
from typing import Any

import llvmlite.binding as llvm  # type: ignore[import-untyped]
import numpy as np

from spectral_kernels._numba import on_one_thread
from spectral_kernels.product import arrays, oracle
from spectral_kernels.product.cpu import kernels, plain, stored, tables
from spectral_kernels.product.cpu.threads import at_most, every, shared, tasks_of, worth
from spectral_kernels.product.cpu.vectors import SPARE
from spectral_kernels.product.packed import Packed

PLAIN, AVX2, AVX512 = "plain", "avx2", "avx512"
_KINDS = {"float16": plain.FLOAT16, "bfloat16": plain.BFLOAT16}
_VIEWS = {"float16": "int16", "bfloat16": "uint16", "float32": "float32", "float64": "float64"}
_TABLES = {"float16": tables.float16, "bfloat16": tables.bfloat16, "float32": tables.float32}
_AVX2 = ("avx2", "fma", "f16c", "popcnt")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512vl")
_WORDS16 = "avx512vbmi2"
#: Arrays by which compiled code knows the type of the words at an address.
_LIKE = {size: np.empty(0, f"uint{8 * size}") for size in (2, 4, 8)}
#: Right-hand sides from which a tile is decoded and multiplied by the BLAS, of a matrix with more
#: than this share of its entries stored.
_BLAS_SIDES, _BLAS_SHARE = 17, 0.5
#: Entries of a decoded tile: 2 MiB of float32, to stay in a cache.
_TILE_ENTRIES = 1 << 19


@lru_cache(maxsize=1)
def _features() -> frozenset[str]:
    return frozenset(name for name, has in llvm.get_host_cpu_features().items() if has)


def ways(dtype: str) -> list[str]:
    """The ways that this processor has for values of a dtype, the fastest first."""
    found, features = [PLAIN], _features()
    if dtype != "float64" and features.issuperset(_AVX2):
        found.insert(0, AVX2)
    words16 = (_WORDS16,) if dtype in _KINDS else ()
    if features.issuperset((*_AVX512, *words16)):
        found.insert(0, AVX512)
    return found


@lru_cache(maxsize=8)
def _table(dtype: str, way: str) -> Any:
    return _TABLES[dtype]() if way == AVX2 else np.empty(0, np.uint16)


@lru_cache(maxsize=2)
def _places(avx512: bool) -> Any:
    """What tells `stored` a byte's places; AVX-512 on words of 16 bits needs no table."""
    return np.empty(0, np.uint8) if avx512 and _WORDS16 in _features() else stored.table()


class Runner:
    """A function of x (..., n) that gives x S^T (..., m) in x's dtype.

    Args:
        packed: on the CPU.
        way: one of `ways`; None: the fastest.
    """

    def __init__(self, packed: Packed, way: str | None = None) -> None:
        (self._m, self._n), dtype = packed.shape, packed.dtype
        self._way = ways(dtype)[0] if way is None else way
        self._words = arrays.words_of(packed.values)
        self._bits = arrays.words_of(packed.bitmask)
        self._offsets = arrays.words_of(packed.row_offsets).view(np.int64)
        self._kind = _KINDS.get(dtype, plain.NATIVE)
        self._sum = np.dtype("float64" if dtype == "float64" else "float32")
        # The odd 16 keep right-hand sides off each other's places in the cache.
        self._stride = -(-self._n // 64) * 64 + 16
        share = self._words.size / (self._m * self._n)
        #: Right-hand sides for which stored values are no longer taken one after another.
        self._to = _BLAS_SIDES if share > _BLAS_SHARE and self._way != PLAIN else sys.maxsize
        floats = self._words if self._kind != plain.NATIVE else self._words.view(self._sum)
        self._stored = (
            floats, self._kind, self._bits, self._offsets, self._n, _places(self._way == AVX512),
        )  # fmt: skip
        self._spare: deque[Any] = deque(maxlen=1)
        self._threads = worth(self._m * self._n)
        self._tensor, self._from_numpy, self._dtypes = _torch_of(packed.values)
        if self._way != PLAIN:
            ends = np.append(self._offsets[1:], self._words.size)
            safe = int(np.searchsorted(ends, self._words.size - SPARE, side="right"))
            rest = self._words[self._offsets[safe] :] if safe < self._m else self._words[:0]
            last = np.concatenate([rest, np.zeros(SPARE, rest.dtype)])
            view = _VIEWS[dtype]
            self._rows = (
                self._words.view(view), last.view(view), safe, self._bits, self._offsets,
                self._n, _table(dtype, self._way),
            )  # fmt: skip

    def __call__(self, x: Any) -> Any:
        """x S^T."""
        words = arrays.words_of(x)
        kind = plain.NATIVE
        if words.itemsize == 2:
            kind = _KINDS[str(x.dtype).removeprefix("torch.")]
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

    def _product(self, address: int, like: Any, kind: int, sides: int) -> Any:
        """Y (sides, m), flat, of the right-hand sides at an address, by the way that is best."""
        Y = np.empty(sides * self._m, self._sum)
        if oracle.SIDES_BY_STORED <= sides < self._to:
            width = 8 if sides <= 8 else 16
            X = self._room(-(-sides // width) * width * self._n)
            given = (address, like, kind, *self._stored, width, X, Y, sides)
            # Infinities in x meet stored values only.
            self._run(kernels.by_stored, kernels.shared_by_stored, given)
        else:
            X, stride = self._room(sides * self._stride), self._stride
            if self._way != PLAIN and sides < oracle.SIDES_BY_STORED:
                rows = (address, like, kind, *self._rows, X, stride, Y, sides)
                done = self._run(kernels.product, kernels.shared_product, rows)
            else:
                finite = kernels.load_at(address, like, kind, self._n, X, stride, sides)
                done = finite and self._way != PLAIN
                if done:
                    self._by_tiles(X, Y, sides)
            if not done:
                self._plainly(X, Y, sides)
        self._spare.append(X)
        return Y

    def _run(self, kernel: Any, shared_kernel: Any, given: tuple[Any, ...]) -> Any:
        """Run a kernel on one thread, or its twin in as many as the matrix is worth."""
        if self._threads == 1 or on_one_thread():
            return kernel(*given)
        return self._in_threads(shared_kernel, given)

    def _in_threads(self, kernel: Any, given: tuple[Any, ...]) -> Any:
        """Run a kernel with the threads that the matrix is worth."""
        tasks = tasks_of(self._threads)
        if self._threads == every():  # nothing to limit, which would take microseconds
            return kernel(*given, tasks)
        with at_most(self._threads):
            return kernel(*given, tasks)

    def _room(self, size: int) -> Any:
        """X of so many entries, from a multiple of 64 bytes on; the last call's, if it is as large
        and no other thread has it.
        """
        try:
            X = self._spare.pop()
        except IndexError:
            X = None
        if X is None or X.size != size:
            held = np.empty(size + 16, self._sum)
            start = (-held.ctypes.data % 64) // self._sum.itemsize
            X = held[start : start + size]
        return X

    def _plainly(self, X: Any, Y: Any, sides: int) -> None:
        """Loops that multiply stored values only; vectors multiply by the zeros too, which finite
        numbers do not show.
        """
        rows = np.ascontiguousarray(X.reshape(sides, self._stride)[:, : self._n])
        y = Y.reshape(sides, self._m)
        with shared(self._m * self._n) as tasks:
            plain.product(
                self._words, self._kind, self._bits, self._offsets, self._n, rows, y, tasks
            )

    def _by_tiles(self, X: Any, Y: Any, sides: int) -> None:
        """Rows decoded, as many as stay in a cache, and multiplied by the BLAS."""
        m, n, stride = self._m, self._n, self._stride
        step = max(1, min(m, _TILE_ENTRIES // stride))
        tile = np.empty(step * stride, self._sum)
        x, y = X.reshape(sides, stride)[:, :n], Y.reshape(sides, m)
        with shared(m * n) as tasks:
            for low in range(0, m, step):
                high = min(low + step, m)
                kernels.decode(*self._rows, tile, stride, low, high, tasks)
                dense = tile.reshape(step, stride)[: high - low, :n]
                y[:, low:high] = x @ dense.T


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
        kind = _KINDS.get(name, plain.NATIVE)
        found[dtype] = (_LIKE[size], kind, None if dtype == own else dtype)
    return torch.Tensor, torch.from_numpy, found


def _as(x: Any, Y: Any) -> Any:
    if arrays.is_torch(x):
        import torch  # noqa: PLC0415 (NumPy users need no torch)

        y = torch.from_numpy(Y)
        return y if y.dtype == x.dtype else y.to(x.dtype)
    return Y.astype(x.dtype, copy=False)
