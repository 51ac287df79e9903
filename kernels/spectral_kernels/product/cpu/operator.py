"""What an operator on the CPU does in a call: x to rows of floats, the kernel, y to x's dtype."""

from collections.abc import Callable
from typing import Any

import numpy as np

from spectral_kernels.product import arrays
from spectral_kernels.product.cpu import plain
from spectral_kernels.product.cpu.threads import shared
from spectral_kernels.product.packed import Packed

_KINDS = {"float16": plain.FLOAT16, "bfloat16": plain.BFLOAT16}


def runner(packed: Packed) -> Callable[[Any], Any]:
    """A function of x (..., n) that gives x S^T (..., m) in x's dtype."""
    m, n = packed.shape
    words = arrays.words_of(packed.values)
    bits = arrays.words_of(packed.bitmask)
    offsets = arrays.words_of(packed.row_offsets).view(np.int64)
    kind = _KINDS.get(packed.dtype, plain.NATIVE)
    accumulator = np.dtype("float64" if packed.dtype == "float64" else "float32")

    def run(x: Any) -> Any:
        X = _rows(x, n, accumulator)
        Y = np.empty((X.shape[0], m), accumulator)
        with shared(m * n) as tasks:
            plain.product(words, kind, bits, offsets, n, X, Y, tasks)
        return _as(x, Y.reshape(*x.shape[:-1], m))

    return run


def _rows(x: Any, n: int, accumulator: Any) -> Any:
    if arrays.is_torch(x):
        import torch  # noqa: PLC0415 (NumPy users need no torch)

        x = x.detach().to(getattr(torch, accumulator.name)).numpy()
    return np.ascontiguousarray(x, accumulator).reshape(-1, n)


def _as(x: Any, Y: Any) -> Any:
    if arrays.is_torch(x):
        import torch  # noqa: PLC0415 (NumPy users need no torch)

        return torch.from_numpy(Y).to(x.dtype)
    return Y.astype(x.dtype, copy=False)
