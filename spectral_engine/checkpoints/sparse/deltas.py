"""Values far apart: how many zeros lie before each of them, a byte each.

255 means that many zeros and no value yet; the next byte goes on. Rows run on into one another.
Behind the last value, whole 255s are written too, so that a few bytes cannot claim a large matrix.
"""

from typing import Any

import numpy as np
from spectral_kernels.product import Packed

MORE = 255


def gaps(places: Any, size: int) -> Any:
    """How many zeros lie before each value, since the value before it, and behind the last."""
    return np.diff(places, prepend=-1, append=size) - 1


def deltas_of(packed: Packed) -> Any:
    """uint8, of a packed matrix."""
    n = packed.shape[1]
    bits = np.unpackbits(packed.bitmask.numpy(), axis=1, count=n, bitorder="little")
    found = gaps(np.flatnonzero(bits.view(bool)), bits.size)
    ends = np.cumsum(found // MORE + 1) - 1
    # The end behind the last value is not written: the shape says it.
    deltas = np.full(int(ends[-1]), MORE, np.uint8)
    deltas[ends[:-1]] = found[:-1] % MORE
    return deltas


def bits_from(deltas: Any, count: int, m: int, n: int) -> Any:
    """The bitmask uint8 (m, ceil(n / 8)) of so many values.

    Raises:
        ValueError: gaps of another number of values, or of another number of entries.
    """
    ends = np.flatnonzero(deltas != MORE)
    if ends.size != count:
        raise ValueError(f"deltas: expected the gaps of {count} values; got those of {ends.size}")
    places = np.cumsum(deltas, dtype=np.int64)[ends] + np.arange(count)
    last = int(places[-1]) if count else -1
    behind = deltas.size - (int(ends[-1]) + 1 if count else 0)
    # So that a few bytes cannot claim a matrix that fills the memory.
    if (m * n - 1 - last) // MORE != behind or last >= m * n:
        raise ValueError(f"deltas: expected those of {m * n} entries; got others")
    width = -(-n // 8)
    bits = np.zeros(m * width, np.uint8)
    columns = places % n
    at, bit = places // n * width + columns // 8, np.uint8(1) << (columns % 8).astype(np.uint8)
    # Places ascend, so that those of one byte are neighbours: one sum a byte.
    if count:
        first = np.flatnonzero(np.diff(at, prepend=-1))
        bits[at[first]] = np.add.reduceat(bit, first, dtype=np.uint8)
    return bits.reshape(m, width)
