"""How a matrix of N values in every M columns is multiplied by on the CPU."""

from typing import Any

import numpy as np

from spectral_kernels.product import arrays, oracle
from spectral_kernels.product.cpu import operator
from spectral_kernels.product.cpu.call import Call
from spectral_kernels.product.cpu.forms import groups
from spectral_kernels.product.cpu.threads import shared
from spectral_kernels.product.cpu.vectors import SPARE
from spectral_kernels.product.packed import Packed
from spectral_kernels.product.positions import Positions, bytes_by_code, check_arrays, code_bits


def packed_of(held: Positions, low: int = 0, high: int | None = None) -> Packed:
    """Rows low to high with a bit for each entry; the values are the same memory.

    Raises:
        ValueError: columns of a group that do not ascend.
    """
    n, (N, M) = held.shape[1], held.pattern
    rows = held.positions[low : held.shape[0] if high is None else high]
    m, each = int(rows.shape[0]), n // M * N
    bits = np.empty(m * (n // 8), np.uint8)
    code, table = code_bits(held.pattern), bytes_by_code(held.pattern)
    with shared(m * n) as tasks:
        flat = arrays.words_of(rows)
        groups.all_bits(flat, rows.shape[1], code, table, m, n // 8, bits, tasks)
    if ((bits == 0).any() and M == 8) or np.bitwise_count(bits).sum(dtype=np.int64) != m * each:
        raise ValueError("positions: expected the columns of each group to ascend")
    offsets = np.arange(m, dtype=np.int64) * each
    values = held.values[low * each : low * each + m * each]
    bitmask, row_offsets = arrays.alike(held.values, bits.reshape(m, -1), offsets)
    return Packed(values, bitmask, row_offsets, (m, n))


class Runner(Call):
    """See `Call`.

    Args:
        held: on the CPU.

    Raises:
        ValueError: columns of a group that do not ascend.
    """

    def __init__(self, held: Positions) -> None:
        check_arrays(held)
        packed_of(held)  # which looks at every group
        super().__init__(held.values, held.shape)
        self._held = held
        way = operator.ways(held.dtype)[0]
        self._rows: tuple[Any, ...] = ()
        if way != operator.PLAIN:
            each = self._words.size // self._m
            safe = max(0, (self._words.size - SPARE) // each)
            words, last = operator.with_spare(self._words, safe * each, held.dtype)
            self._rows = (
                words, last, safe, arrays.words_of(held.positions), held.positions.shape[1],
                code_bits(held.pattern), bytes_by_code(held.pattern), each, self._n,
                operator.lanes_table(held.dtype, way),
            )  # fmt: skip

    def _product(self, address: int, like: Any, kind: int, sides: int) -> Any:
        if self._rows and sides < oracle.SIDES_BY_STORED:
            Y, X = np.empty(sides * self._m, self._sum), self._room(sides * self._stride)
            given = (address, like, kind, *self._rows, X, self._stride, Y, sides, self._m)
            finite = self._run(groups.product, groups.shared_product, given)
            self._give_back(X)
            if finite:
                return Y
        # For many sides the bits of the matrix, made for the call, are little beside the product.
        return operator.Runner(packed_of(self._held))._product(address, like, kind, sides)
