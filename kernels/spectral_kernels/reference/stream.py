"""The random stream: Philox4x32-10, addressed by the logical position of an entry.

The stream is part of the project's contract. Entry (i, j) of the tensor `stream` under `seed`
always gets the same word, whatever the block size, the number of threads, the launch grid or the
shard that computes it:

    counter = (j >> 2, i mod 2^32, i >> 32, stream)     key = (seed mod 2^32, seed >> 32)
    word(i, j) = output word (j & 3) of Philox4x32-10(counter, key)
    u(i, j)    = word >> 8, an integer uniform on [0, 2^24)

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
This module is the NumPy reference that the CPU and Triton kernels must match bit for bit.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
WORD_MASK = 0xFFFFFFFF
#: A draw is an integer in [0, UNIT); a probability is a multiple of 1 / UNIT.
UNIT = 1 << 24

UInt32 = NDArray[np.uint32]


def philox4x32(
    counter: tuple[NDArray[np.integer], ...], key: tuple[int, int]
) -> tuple[UInt32, UInt32, UInt32, UInt32]:
    """Four 32-bit words for each counter; `counter` holds four broadcastable arrays of words."""
    x0, x1, x2, x3 = (np.asarray(word).astype(np.uint64) for word in counter)
    k0, k1 = key
    for _ in range(ROUNDS):
        product0 = x0 * np.uint64(MULTIPLIERS[0])
        product1 = x2 * np.uint64(MULTIPLIERS[1])
        low, high = np.uint64(WORD_MASK), np.uint64(32)
        x0, x1, x2, x3 = (
            (product1 >> high) ^ x1 ^ np.uint64(k0),
            product1 & low,
            (product0 >> high) ^ x3 ^ np.uint64(k1),
            product0 & low,
        )
        k0 = (k0 + KEY_INCREMENTS[0]) & WORD_MASK
        k1 = (k1 + KEY_INCREMENTS[1]) & WORD_MASK
    w0, w1, w2, w3 = (x.astype(np.uint32) for x in np.broadcast_arrays(x0, x1, x2, x3))
    return w0, w1, w2, w3


def split_seed(seed: int) -> tuple[int, int]:
    """The two key words of a seed in [0, 2^64)."""
    return seed & WORD_MASK, seed >> 32


def words(
    shape: tuple[int, int], seed: int, stream: int, *, row_offset: int = 0, column_offset: int = 0
) -> UInt32:
    """The (m, n) words of rows row_offset.. and columns column_offset.. of tensor `stream`."""
    m, n = shape
    rows = np.arange(row_offset, row_offset + m, dtype=np.uint64)[:, None]
    first = column_offset // 4
    quads = np.arange(first, -(-(column_offset + n) // 4), dtype=np.uint64)[None, :]
    outputs = philox4x32(
        (quads, rows & np.uint64(WORD_MASK), rows >> np.uint64(32), np.asarray(stream, np.uint64)),
        split_seed(seed),
    )
    interleaved = np.stack(outputs, axis=-1).reshape(m, -1)
    start = column_offset - 4 * first
    return interleaved[:, start : start + n]


def draws(
    shape: tuple[int, int], seed: int, stream: int, *, row_offset: int = 0, column_offset: int = 0
) -> UInt32:
    """The (m, n) integers u in [0, 2^24) that decide keep (u < t) or drop.

    Args:
        shape: (m, n).
        seed: of 64 bits; other seeds give other draws.
        stream: of 32 bits, one for each tensor; see `stream_id`.
        row_offset, column_offset: the row and column of the tensor at which the (m, n) lie.

    Returns:
        uint32 (m, n).

    >>> from spectral_kernels import draws
    >>> whole, part = draws((4, 6), 1, 0), draws((2, 3), 1, 0, row_offset=2, column_offset=3)
    >>> bool((whole[2:, 3:] == part).all())
    True
    """
    return words(
        shape, seed, stream, row_offset=row_offset, column_offset=column_offset
    ) >> np.uint32(8)


def stream_id(name: str) -> int:
    """The stream of a tensor: the first four bytes, little-endian, of BLAKE2b of its UTF-8 name.

    Args:
        name: of the tensor, such as that of a layer.

    Returns:
        An integer in [0, 2^32).

    >>> from spectral_kernels import stream_id
    >>> stream_id("encoder.weight") == stream_id("decoder.weight")
    False
    """
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "little")
