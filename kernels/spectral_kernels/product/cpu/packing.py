"""Packing and unpacking on the CPU: words in, bits and words out, a row a task.

Branches on single bits cost more than the memory does, so entries are stored whether they are
wanted or not, and only the place of the next store depends on the bit. Eight entries at a time are
handled so while eight more of the row are to come, so that no store falls outside the row.
"""

# mypy: ignore-errors
# Compiled code has no types to check: Numba gives its own.

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from spectral_kernels._numba import compiled
from spectral_kernels.product.arrays import Words
from spectral_kernels.product.cpu.scalars import popcount
from spectral_kernels.product.cpu.threads import shared

Bits = NDArray[np.uint8]
Offsets = NDArray[np.int64]


def bits_and_offsets(words: Words, m: int, n: int) -> tuple[Bits, Offsets, int]:
    """bitmask uint8 (m, ceil(n / 8)), row offsets int64 (m,), and the number of nonzero words."""
    with shared(m * n) as tasks:
        bits, counts = _bits(words, m, n, tasks)
    offsets = np.cumsum(counts) - counts
    return bits, offsets, int(counts.sum())


def gather(words: Words, bits: Bits, offsets: Offsets, values: Words, n: int) -> None:
    """values: the words of the matrix whose bit is 1."""
    with shared(words.size) as tasks:
        _gather(words, bits.reshape(-1), offsets, values, n, tasks)


def scatter(values: Words, bits: Bits, offsets: Offsets, out: Words, n: int) -> None:
    """out: the matrix (m, n), flat, 0 where the bit is."""
    with shared(out.size) as tasks:
        _scatter(values, bits, offsets, out, n, tasks)


def first_wrong_row(bits: Bits, offsets: Offsets, nnz: int, n: int) -> int:
    """The first row whose ones do not fill what the offsets leave for it, or that has ones past
    column n; -1 where there is none.
    """
    m = offsets.size
    with shared(m * n) as tasks:
        right = _right_rows(bits, offsets, nnz, n, tasks)
    wrong = np.flatnonzero(right == 0)
    return int(wrong[0]) if wrong.size else -1


@intrinsic
def eight_nonzero(typingctx, words, at):
    """A byte with a 1 for each of eight words from `at` on that is not 0, the first in bit 0."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        word = data.type.pointee
        vector = ir.VectorType(word, 8)
        pointer = builder.bitcast(builder.gep(data, [args[1]]), vector.as_pointer())
        found = builder.load(pointer, align=word.width // 8)
        mask = builder.icmp_unsigned("!=", found, ir.Constant(vector, [0] * 8))
        return builder.bitcast(mask, ir.IntType(8))

    return types.uint8(words, types.int64), codegen


@compiled(parallel=True)
def _bits(words, m, n, tasks):
    width = (n + 7) // 8
    bits, counts = np.empty((m, width), np.uint8), np.empty(m, np.int64)
    zero = words.dtype.type(0)
    for task in prange(tasks):
        for i in range(task * m // tasks, (task + 1) * m // tasks):
            row, out, found = words[i * n : (i + 1) * n], bits[i], 0
            for k in range(n // 8):
                byte = eight_nonzero(row, 8 * k)
                out[k] = byte
                found += popcount(byte)
            if n % 8:
                byte = np.uint8(0)
                for b in range(n % 8):
                    byte |= np.uint8(row[n - n % 8 + b] != zero) << np.uint8(b)
                out[width - 1] = byte
                found += popcount(byte)
            counts[i] = found
    return bits, counts


@compiled(parallel=True)
def _gather(words, bits, offsets, values, n, tasks):
    m, width = offsets.size, (n + 7) // 8
    for task in prange(tasks):
        for i in range(task * m // tasks, (task + 1) * m // tasks):
            at = offsets[i]
            stop = offsets[i + 1] if i + 1 < m else values.size
            for k in range(width):
                byte = np.uint64(bits[i * width + k])
                start = i * n + 8 * k
                if at + 8 <= stop and 8 * k + 8 <= n:
                    for b in range(8):
                        values[at] = words[start + b]
                        at += np.int64(byte >> np.uint64(b) & np.uint64(1))
                else:
                    for b in range(min(8, n - 8 * k)):
                        if byte >> np.uint64(b) & np.uint64(1):
                            values[at] = words[start + b]
                            at += 1


@compiled(parallel=True)
def _scatter(values, bits, offsets, out, n, tasks):
    m, width, zero = offsets.size, (n + 7) // 8, out.dtype.type(0)
    for task in prange(tasks):
        for i in range(task * m // tasks, (task + 1) * m // tasks):
            at = offsets[i]
            for k in range(width):
                byte = np.uint64(bits[i * width + k])
                start = i * n + 8 * k
                if at + 8 <= values.size and 8 * k + 8 <= n:
                    for b in range(8):
                        bit = byte >> np.uint64(b) & np.uint64(1)
                        out[start + b] = values[at] * bit  # a choice would become a branch
                        at += np.int64(bit)
                else:
                    for b in range(min(8, n - 8 * k)):
                        if byte >> np.uint64(b) & np.uint64(1):
                            out[start + b] = values[at]
                            at += 1
                        else:
                            out[start + b] = zero


@compiled(parallel=True)
def _right_rows(bits, offsets, nnz, n, tasks):
    m, width = offsets.size, (n + 7) // 8
    right = np.empty(m, np.uint8)
    for task in prange(tasks):
        for i in range(task * m // tasks, (task + 1) * m // tasks):
            found = 0
            for k in range(i * width, (i + 1) * width):
                found += popcount(bits[k])
            stop = offsets[i + 1] if i + 1 < m else nnz
            good = offsets[i] >= 0 and offsets[i] + found == stop and (i > 0 or offsets[0] == 0)
            if n % 8:
                good = good and bits[(i + 1) * width - 1] >> np.uint8(n % 8) == 0
            right[i] = good
    return right
