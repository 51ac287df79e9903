"""A sparse matrix without its zeros: a bit mask, or compressed sparse rows (CSR).

These are the NumPy oracles; `backends.gpu.packed` does the same on a device.

bits: uint8 (ceil(m n / 8),), eight entries a byte in row-major order, the first in the lowest bit.
A bit is 1 where the entry is kept. This is the bit order "little" of `numpy.packbits`, over the
whole matrix.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Bits = NDArray[np.uint8]


def pack_bits(A: Array) -> Bits:
    """Bits of the entries of A that are not zero."""
    return np.packbits(A.ravel() != 0, bitorder="little")


def unpack_bits(bits: Bits, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask (m, n) that bits stand for."""
    m, n = shape
    return np.unpackbits(bits, count=m * n, bitorder="little").reshape(shape).astype(bool)


def compressed_rows(A: Array) -> tuple[NDArray[np.int64], NDArray[np.int64], Array]:
    """Compressed sparse rows: where rows start (m + 1,), columns (nnz,) and values (nnz,)."""
    starts = np.concatenate([[0], np.count_nonzero(A, axis=1).cumsum()]).astype(np.int64)
    rows, columns = np.nonzero(A)
    return starts, columns.astype(np.int64), A[rows, columns]


def masked_product(
    left: Array, right: Array, bits: Bits, X: Array | None = None, ridge: float = 0.0
) -> Array:
    """left (m, r) @ right (r, n) + ridge X on the mask, 0 elsewhere."""
    product = left @ right
    if X is not None:
        product = product + product.dtype.type(ridge) * X
    return np.where(unpack_bits(bits, product.shape), product, product.dtype.type(0))
