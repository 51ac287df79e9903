"""What tells eight stored values their columns, for each of the 256 bytes of a bit mask.

Row b of a table is for the byte b: byte 4 l + q of it is the place, among the bytes of the values
that were loaded, of byte q of column l's value; 0x80, where the column's bit is 0, makes a zero
(`vpshufb`).
"""

import numpy as np
from numpy.typing import NDArray

_ZERO = 0x80


def float32() -> NDArray[np.uint8]:
    """(256, 32): two halves of four columns; each half takes from four values of its own."""
    table = np.full((256, 2, 4, 4), _ZERO, np.uint8)
    for byte in range(256):
        for half in range(2):
            columns = [column for column in range(4) if byte >> (4 * half + column) & 1]
            for place, column in enumerate(columns):
                table[byte, half, column] = 4 * place + np.arange(4)
    return _aligned(table.reshape(256, 32))


def bfloat16() -> NDArray[np.uint8]:
    """(256, 32): a value is the upper half of its column's four bytes, which makes it a float32."""
    table = np.full((256, 8, 4), _ZERO, np.uint8)
    for byte in range(256):
        for place, column in enumerate(c for c in range(8) if byte >> c & 1):
            table[byte, column, 2:] = 2 * place + np.arange(2)
    return _aligned(table.reshape(256, 32))


def float16() -> NDArray[np.uint8]:
    """(256, 16): two bytes a column, still float16."""
    table = np.full((256, 8, 2), _ZERO, np.uint8)
    for byte in range(256):
        for place, column in enumerate(c for c in range(8) if byte >> c & 1):
            table[byte, column] = 2 * place + np.arange(2)
    return _aligned(table.reshape(256, 16))


def _aligned(table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The table, flat, from a multiple of 64 bytes on: no row crosses a line of the cache."""
    room = np.empty(table.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    out = room[start : start + table.nbytes]
    out[...] = table.reshape(-1)
    return out
