"""How a matrix of values and bits is multiplied by on the CPU: which kernel for how many sides."""

import sys
from functools import lru_cache
from typing import Any

import llvmlite.binding as llvm  # type: ignore[import-untyped]
import numpy as np

from spectral_kernels.product import arrays, oracle
from spectral_kernels.product.cpu import kernels, plain, stored, tables
from spectral_kernels.product.cpu.call import KINDS, Call
from spectral_kernels.product.cpu.threads import shared
from spectral_kernels.product.cpu.vectors import SPARE
from spectral_kernels.product.packed import Packed

PLAIN, AVX2, AVX512 = "plain", "avx2", "avx512"
_VIEWS = {"float16": "int16", "bfloat16": "uint16", "float32": "float32", "float64": "float64"}
_TABLES = {"float16": tables.float16, "bfloat16": tables.bfloat16, "float32": tables.float32}
_AVX2 = ("avx2", "fma", "f16c", "popcnt")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512vl")
_WORDS16 = "avx512vbmi2"
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
    words16 = (_WORDS16,) if dtype in KINDS else ()
    if features.issuperset((*_AVX512, *words16)):
        found.insert(0, AVX512)
    return found


@lru_cache(maxsize=8)
def lanes_table(dtype: str, way: str) -> Any:
    """What tells the AVX2 way the lanes of a byte's values; empty for the AVX-512 way."""
    return _TABLES[dtype]() if way == AVX2 else np.empty(0, np.uint16)


@lru_cache(maxsize=2)
def _places(avx512: bool) -> Any:
    """What tells `stored` a byte's places; AVX-512 on words of 16 bits needs no table."""
    return np.empty(0, np.uint8) if avx512 and _WORDS16 in _features() else stored.table()


def with_spare(words: Any, start: int, dtype: str) -> tuple[Any, Any]:
    """The words as kernels read them, and those from `start` on with room behind them: a vector
    may be read, and not used, up to SPARE words beyond the last.
    """
    last = np.concatenate([words[start:], np.zeros(SPARE, words.dtype)])
    return words.view(_VIEWS[dtype]), last.view(_VIEWS[dtype])


class Runner(Call):
    """See `Call`.

    Args:
        packed: on the CPU.
        way: one of `ways`; None: the fastest.
    """

    def __init__(self, packed: Packed, way: str | None = None) -> None:
        super().__init__(packed.values, packed.shape)
        dtype = packed.dtype
        self._way = ways(dtype)[0] if way is None else way
        self._bits = arrays.words_of(packed.bitmask)
        self._offsets = arrays.signed_of(packed.row_offsets)
        share = self._words.size / (self._m * self._n)
        #: Right-hand sides for which stored values are no longer taken one after another.
        self._to = _BLAS_SIDES if share > _BLAS_SHARE and self._way != PLAIN else sys.maxsize
        self._stored = (
            self._floats, self._kind, self._bits, self._offsets, self._n,
            _places(self._way == AVX512),
        )  # fmt: skip
        if self._way != PLAIN:
            ends = np.append(self._offsets[1:], self._words.size)
            safe = int(np.searchsorted(ends, self._words.size - SPARE, side="right"))
            start = int(self._offsets[safe]) if safe < self._m else self._words.size
            self._rows = (
                *with_spare(self._words, start, dtype), safe, self._bits, self._offsets, self._n,
                lanes_table(dtype, self._way),
            )  # fmt: skip

    def _product(self, address: int, like: Any, kind: int, sides: int) -> Any:
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
        self._give_back(X)
        return Y

    def _plainly(self, X: Any, Y: Any, sides: int) -> None:
        """Loops that multiply stored values only; vectors multiply by the zeros too, which finite
        numbers do not show.
        """
        rows = np.ascontiguousarray(self._sides_of(X, sides))
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
        x, y = self._sides_of(X, sides), Y.reshape(sides, m)
        with shared(m * n) as tasks:
            for low in range(0, m, step):
                high = min(low + step, m)
                kernels.decode(*self._rows, tile, stride, low, high, tasks)
                dense = tile.reshape(step, stride)[: high - low, :n]
                y[:, low:high] = x @ dense.T

    def _sides_of(self, X: Any, sides: int) -> Any:
        """(sides, n) of a room in which they lie `stride` apart."""
        return X[: sides * self._stride].reshape(sides, self._stride)[:, : self._n]
