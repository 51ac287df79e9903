"""The product in plain loops, for every processor; `oracle` states the order of its sums."""

# mypy: ignore-errors
# Compiled code has no types to check: Numba gives its own.

import numpy as np
from numba import prange
from numba.extending import overload

from spectral_kernels._numba import compiled
from spectral_kernels.product.cpu.scalars import float32_of, float64_of, fused
from spectral_kernels.product.oracle import LANES

#: What 16-bit words are.
NATIVE, FLOAT16, BFLOAT16 = 0, 1, 2
_MANTISSA, _SIGN, _SPECIAL = np.uint32(0x7FFF), np.uint32(0x8000), np.uint32(0x7C00)
_SCALE = np.float32(2.0**112)
_INFINITE = np.uint32(0x7F800000)


def wide(word, kind):
    """The value of a word: float64 of 64 bits, else float32."""
    raise RuntimeError("only compiled code calls this; its overloads are below")


@overload(wide, inline="always")
def _wide(word, kind):
    if word.bitwidth == 64:
        return lambda word, kind: float64_of(word)
    if word.bitwidth == 32:
        return lambda word, kind: float32_of(word)

    def wide16(word, kind):
        bits = np.uint32(word)
        if kind == BFLOAT16:
            return float32_of(bits << np.uint32(16))
        sign = (bits & _SIGN) << np.uint32(16)
        magnitude = (bits & _MANTISSA) << np.uint32(13)
        if bits & _SPECIAL == _SPECIAL:
            return float32_of(sign | magnitude | _INFINITE)
        # The exponent and fraction in float32's place are the value times 2^-112.
        value = float32_of(magnitude) * _SCALE
        return -value if sign else value

    return wide16


@compiled(parallel=True)
def product(words, kind, bits, offsets, n, X, Y, tasks):
    """Y (k, m) = X (k, n) S^T; X and Y float64 for 64-bit words, else float32."""
    m, width = offsets.size, (n + 7) // 8
    for task in prange(tasks):
        lanes = np.empty(LANES, X.dtype)
        for i in range(task * m // tasks, (task + 1) * m // tasks):
            for r in range(X.shape[0]):
                lanes[:] = 0
                at = offsets[i]
                for k in range(width):
                    byte = bits[i * width + k]
                    column = 8 * k
                    while byte:
                        if byte & np.uint8(1):
                            lane = column % LANES
                            lanes[lane] = fused(wide(words[at], kind), X[r, column], lanes[lane])
                            at += 1
                        byte >>= np.uint8(1)
                        column += 1
                half = LANES // 2
                while half:
                    for lane in range(half):
                        lanes[lane] += lanes[lane + half]
                    half //= 2
                # Turns -0 into 0: an order that adds the products of zeros knows no -0.
                Y[r, i] = lanes[0] + X.dtype.type(0)
