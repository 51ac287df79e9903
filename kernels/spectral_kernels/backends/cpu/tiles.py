"""CPU kernels of block patterns: the scores of the blocks, and the blocks that are kept.

`patterns.block_scores` says what the first must return.
"""

import numpy as np
from numba import prange

from spectral_kernels._numba import compiled
from spectral_kernels.backends.cpu.chunks import CHUNK, NATIVE
from spectral_kernels.backends.cpu.kernels import line, scored_chunk
from spectral_kernels.reference.patterns import LEAST_SCORE

_LEAST = np.float32(LEAST_SCORE)


@compiled(parallel=True)
def block_scores(src, kind, m, n, base, factors, weights, row, column, rows, columns):
    """The root mean square score of each block, float32 (m / rows, n / columns)."""
    across = n // columns
    found = np.empty((m // rows, across), np.float32)
    for r in prange(m // rows):
        a, s, scratch = line(), line(), line()
        sums = np.zeros(across, np.float64)
        for i in range(r * rows, (r + 1) * rows):
            for j in range(0, n, CHUNK):
                size = min(CHUNK, n - j)
                _, scores = scored_chunk(
                    src, kind, n, i, j, size, base, factors, weights, row, column, a, s, scratch
                )
                block, place = j // columns, j % columns
                for k in range(size):
                    wide = np.float64(scores[k])
                    sums[block] += wide * wide
                    place += 1
                    if place == columns:
                        block, place = block + 1, 0
        for block in range(across):
            mean = np.sqrt(sums[block] / (rows * columns))
            found[r, block] = np.maximum(np.float32(mean), _LEAST)
    return found


@compiled(parallel=True)
def keep_blocks(src, out, kind, m, n, rows, columns, kept):
    """out = src in the blocks of `kept` (m / rows, n / columns) uint8, else 0; counts nonzeros."""
    zero = src.dtype.type(0)
    # The sign of a zero in a 16-bit format, which travels as an integer.
    minus_zero = zero if kind == NATIVE else src.dtype.type(0x8000)
    nonzeros = np.zeros(m, np.int64)
    for i in prange(m):
        found = 0
        for block in range(n // columns):
            start = i * n + block * columns
            x, y = src[start : start + columns], out[start : start + columns]
            if kept[i // rows, block]:
                for k in range(columns):
                    y[k] = x[k]
                    found += x[k] != zero and x[k] != minus_zero
            else:
                y[:] = zero
        nonzeros[i] = found
    return nonzeros.sum()
