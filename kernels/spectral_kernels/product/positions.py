"""The form of a matrix with N values in every M columns: values, and which columns they are in."""

from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectral_kernels.product import arrays

#: Patterns (N, M) whose columns take no more bits than a bit for each entry.
PATTERNS = ((1, 8), (1, 4), (2, 8), (2, 4))


@dataclass(frozen=True, eq=False)
class Positions:
    """A matrix (m, n) with N values stored in every M columns. Arrays are NumPy, or torch on the
    CPU.

    Args:
        values: (m n / M N,), as those of `Packed`; zeros are stored where a group has fewer values.
        positions: uint8 (m, bytes). Each value has log2(M) bits that say in which column of its
            group it is, the first value of the row in the lowest bits of the first byte; columns of
            a group ascend. A row starts with a new byte; unused bits at its end are 0.
        pattern: (N, M), one of PATTERNS; 8 divides n.
        shape: (m, n).
    """

    values: Any
    positions: Any
    pattern: tuple[int, int]
    shape: tuple[int, int]

    @property
    def dtype(self) -> str:
        """The values' dtype, for example "bfloat16"."""
        return str(self.values.dtype).removeprefix("torch.")

    @property
    def nnz(self) -> int:
        """How many entries are stored, zeros among them."""
        return int(self.values.shape[0])


def code_bits(pattern: tuple[int, int]) -> int:
    """How many bits the values of eight columns take."""
    N, M = pattern
    return 8 // M * N * (M.bit_length() - 1)


@cache
def bytes_by_code(pattern: tuple[int, int]) -> NDArray[np.uint8]:
    """For what the columns of eight columns' values may be, the byte of a bit mask; else 0."""
    N, M = pattern
    step, found = M.bit_length() - 1, np.zeros(256, np.uint8)
    for groups in product(combinations(range(M), N), repeat=8 // M):
        byte = code = at = 0
        for group, columns in enumerate(groups):
            for column in columns:
                byte |= 1 << (group * M + column)
                code |= column << at
                at += step
        found[code] = byte
    return found


def check_arrays(held: Positions) -> None:
    """Refuse arrays of another kind, dtype or shape.

    Raises:
        TypeError: an array of the wrong kind or dtype.
        ValueError: another pattern or shape, bits behind the last group of a row, or on a GPU.
    """
    arrays.dtype_of(held.values, "values")
    (m, n), (N, M) = held.shape, held.pattern
    if held.pattern not in PATTERNS or n % 8:
        raise ValueError(f"pattern: expected one of {PATTERNS} and 8 to divide {n}; got {N, M}")
    used = n // 8 * code_bits(held.pattern)
    expected = {"values": (m * (n // M) * N,), "positions": (m, -(-used // 8))}
    for name, array in (("values", held.values), ("positions", held.positions)):
        if arrays.is_torch(array) != arrays.is_torch(held.values):
            raise TypeError(f"{name}: expected {type(held.values)}; got {type(array)}")
        if tuple(array.shape) != expected[name]:
            raise ValueError(f"{name}: expected shape {expected[name]}; got {tuple(array.shape)}")
        if arrays.on_gpu(array):
            raise ValueError(f"{name}: expected on the CPU; got {array.device}")
    found = str(held.positions.dtype).removeprefix("torch.")
    if found != "uint8":
        raise TypeError(f"positions: expected uint8; got {found}")
    if used % 8 and bool((held.positions[:, -1] >> (used % 8)).any()):
        raise ValueError("positions: expected zeros behind the last group of a row")
