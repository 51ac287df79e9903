"""N of every M columns: the values of each group, and in which columns they are.

Each of a group's N columns takes log2(M) bits, the first in the lowest, ascending; groups follow
one another, and a row starts with a new byte. 2:4 takes a byte for two groups, as sparse matrix
units have it. A group of fewer values is filled with zeros, in its first columns that are free.
Tables of 256 rows turn eight columns at a time.
"""

from functools import cache
from typing import Any

import numpy as np
from spectral_kernels.product import PATTERNS, code_bits

#: Rows that are looked at first: a matrix without a pattern is told by these.
_FIRST = 8
_BLOCK = 1024


def holds(words: Any, pattern: tuple[int, int]) -> bool:
    """Whether each group of M columns has N values or fewer, in every row.

    Args:
        words: the bits of the entries, (m, n).
        pattern: one of PATTERNS.
    """
    m, n = words.shape
    if n % 8:
        return False
    right = _few_enough(pattern)
    blocks = [words[:_FIRST], *(words[i : i + _BLOCK] for i in range(_FIRST, m, _BLOCK))]
    return all(
        bool(right[np.packbits(block != 0, axis=1, bitorder="little")].all()) for block in blocks
    )


def check(pattern: tuple[int, int], n: int) -> None:
    """ValueError for a pattern that is not one of PATTERNS, or that rows of n do not have."""
    if pattern not in PATTERNS or n % 8:
        raise ValueError(f"pattern: expected one of {PATTERNS} and 8 to divide {n}; got {pattern}")


def row_bytes(n: int, pattern: tuple[int, int]) -> int:
    """How many bytes the columns of a row take."""
    return -(-(n // 8 * code_bits(pattern)) // 8)


def filled(bits: Any, pattern: tuple[int, int]) -> Any:
    """The bitmask with ones added, so that each group has N of them."""
    return _tables(pattern)[0][bits]


def positions_of(bits: Any, pattern: tuple[int, int]) -> Any:
    """uint8 (m, row_bytes): the columns of a bitmask that has N ones in each group."""
    codes = _tables(pattern)[1][bits]
    width = code_bits(pattern)
    if width == 8:
        return codes
    each = np.unpackbits(codes[..., None], axis=2, count=width, bitorder="little")
    return np.packbits(each.reshape(bits.shape[0], -1), axis=1, bitorder="little")


@cache
def _few_enough(pattern: tuple[int, int]) -> Any:
    """Whether a byte of bits has N ones or fewer in each group."""
    N, M = pattern
    groups = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).reshape(256, -1, M)
    return (groups.sum(axis=2) <= N).all(axis=1)


@cache
def _tables(pattern: tuple[int, int]) -> tuple[Any, Any]:
    """By a byte of bits: with ones added, its code."""
    N, M = pattern
    step = M.bit_length() - 1
    fill, code = np.zeros(256, np.uint8), np.zeros(256, np.uint8)
    for byte in range(256):
        at = 0
        for group in range(8 // M):
            ones = [b for b in range(M) if byte >> (group * M + b) & 1]
            free = [b for b in range(M) if b not in ones]
            columns = sorted(ones + free[: max(0, N - len(ones))])[:N]
            for column in columns:
                fill[byte] |= 1 << (group * M + column)
                code[byte] |= column << at
                at += step
    return fill, code
