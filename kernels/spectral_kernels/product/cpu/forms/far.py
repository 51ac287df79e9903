"""How a matrix of values and gaps is multiplied by on the CPU."""

from typing import Any

import numpy as np

from spectral_kernels.product import arrays, oracle
from spectral_kernels.product.cpu.call import Call
from spectral_kernels.product.cpu.forms import gaps
from spectral_kernels.product.cpu.threads import shared
from spectral_kernels.product.deltas import Deltas

#: Bytes of gaps from one start of a walk to the next; a start takes 24.
_BLOCK = 4096


class Runner(Call):
    """See `Call`.

    Args:
        held: on the CPU.

    Raises:
        ValueError: gaps that are not those of the matrix.
    """

    def __init__(self, held: Deltas) -> None:
        super().__init__(held.values, held.shape)
        self._held = held
        deltas = arrays.words_of(held.deltas)
        blocks = max(1, min(self._m, deltas.size // _BLOCK))
        step = -(-self._m // blocks)
        starts, right = gaps.starts_of(deltas, self._words.size, self._m, self._n, step)
        if not right:
            raise ValueError(
                f"deltas: expected the gaps of {self._words.size} values among "
                f"{self._m * self._n} entries; got others"
            )
        self._starts, self._step, self._deltas = starts, step, deltas

    def rows(self, wanted: Any) -> Any:
        """Rows (k, n), dense, of int64 indices (k,) in NumPy, which must be from 0 to m - 1."""
        out = arrays.empty_like(self._held.values, (wanted.size, self._n), self._held.dtype)
        self.rows_into(wanted, out)
        return out

    def rows_into(self, wanted: Any, out: Any) -> None:
        """`rows` into an array that is there, contiguous."""
        given = (self._words, self._deltas, self._starts, self._step, self._n, wanted)
        with shared(wanted.size * self._n) as tasks:
            gaps.dense_rows(*given, arrays.words_of(out), tasks)

    def _product(self, address: int, like: Any, kind: int, sides: int) -> Any:
        Y = np.empty(sides * self._m, self._sum)
        own = (self._kind, self._deltas, self._starts, self._step, self._n)
        if sides < oracle.SIDES_BY_STORED:
            X = self._room(sides * self._stride)
            given = (self._floats, *own, X, self._stride, Y, sides, self._m)
            self._run(gaps.by_column, gaps.shared_by_column, (address, like, kind, *given))
        else:
            width = 8 if sides <= 8 else 16
            X = self._room(-(-sides // width) * width * self._n)
            given = (self._floats, *own, X, width, Y, sides, self._m)
            self._run(gaps.by_stored, gaps.shared_by_stored, (address, like, kind, *given))
        self._give_back(X)
        return Y
