"""One stored value after another, for several right-hand sides.

The columns of a row's values are written down first, from the bits: either `vpcompressw` moves the
numbers of the columns whose bit is 1 together, or a table's row for each byte of bits says them.
Then each value is multiplied by the right-hand sides' entries of its column, which lie side by
side. Zeros cost nothing here; `vectors` multiplies by them, and has a value ready sooner: for one
right-hand side it is faster at 90 % zeros still (8192 x 8192, 2.3 ms against 3.7 by AVX-512, 3.3
against 5.0 by AVX2).
"""

# mypy: ignore-errors
# This builds code for the compiler, whose values have no types that mypy knows.

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from spectral_kernels._numba import compiled
from spectral_kernels.product.cpu.decoders import WORD, fused, load, ones_below
from spectral_kernels.product.cpu.plain import BFLOAT16, wide
from spectral_kernels.product.oracle import SUMS, TILE

_I16, _I32, _I64 = (ir.IntType(bits) for bits in (16, 32, 64))


def table() -> np.ndarray:
    """(256, 8) uint16, flat: the places of the ones of each byte, 0 after the last."""
    found = np.zeros((256, 8), np.uint16)
    for byte in range(256):
        places = [bit for bit in range(8) if byte >> bit & 1]
        found[byte, : len(places)] = places
    return found.reshape(-1)


@intrinsic
def write_places(typingctx, word, first, places, out, at):
    """Write first + the place of each 1 of a word into `out` (uint16) from `at` on; how many.

    places: `table()`; or uint8, empty, for AVX-512. Up to 64 entries of `out` are overwritten.
    """
    compress = places.dtype == types.uint8

    def codegen(context, b, signature, args):
        def data(index):
            return context.make_array(signature.args[index])(context, b, args[index]).data

        word, first, start = args[0], b.trunc(args[1], _I16), b.gep(data(3), [args[4]])
        lanes = 32 if compress else 8
        vector = ir.VectorType(_I16, lanes)
        base = _splat(b, first, vector)
        for bit in range(0, WORD, lanes):
            moved = b.lshr(word, ir.Constant(_I64, bit))
            if compress:
                numbers = ir.Constant(vector, [ir.Constant(_I16, bit + i) for i in range(lanes)])
                kind = ir.FunctionType(vector, [vector, _I32])
                move = ir.InlineAsm(kind, "vpcompressw $1, $0 {$2} {z}", "=v,v,^Yk")
                found = b.call(move, [b.add(base, numbers), b.trunc(moved, _I32)])
            else:
                row = b.mul(b.and_(moved, ir.Constant(_I64, 255)), ir.Constant(_I64, lanes))
                found = load(b, b.gep(data(2), [row]), vector)
                found = b.add(found, b.add(base, _splat(b, ir.Constant(_I16, bit), vector)))
            here = b.gep(start, [ones_below(b, word, bit)])
            b.store(found, b.bitcast(here, vector.as_pointer()), align=2)
        return b.ctpop(word)

    return types.int64(types.uint64, types.int64, places, out, types.int64), codegen


@intrinsic
def word_at(typingctx, bits, byte):
    """Eight bytes of a uint8 array as one word."""

    def codegen(context, b, signature, args):
        data = context.make_array(signature.args[0])(context, b, args[0]).data
        return b.load(b.bitcast(b.gep(data, [args[1]]), _I64.as_pointer()), align=1)

    return types.uint64(bits, types.int64), codegen


@compiled(inline="always")  # a call would count the arrays' references, for longer than it works
def columns_of(bits, byte, width, places, out):
    """The columns of the ones of `width` bytes of bits, from 0 on, into `out`; how many.

    `out` has room for 64 more than there are bits.
    """
    count = 0
    for k in range(0, width - 7, 8):
        count += write_places(word_at(bits, byte + k), 8 * k, places, out, count)
    rest = width & 7
    if rest:
        word, k = np.uint64(0), width - rest
        for q in range(rest):
            word |= np.uint64(bits[byte + k + q]) << np.uint64(8 * q)
        count += write_places(word, 8 * k, places, out, count)
    return count


@intrinsic
def widen(typingctx, words, at, count, kind, out):
    """The floats of `count` words of 16 bits (uint16) from `at` on, into `out` (float32).

    Sixteen are read and written at a time: up to 15 beyond the last.
    """

    def codegen(context, b, signature, args):
        def data(index):
            return context.make_array(signature.args[index])(context, b, args[index]).data

        narrow, vector = ir.VectorType(_I16, 16), ir.VectorType(_I32, 16)
        floats = ir.VectorType(ir.FloatType(), 16)
        source, target = b.gep(data(0), [args[1]]), data(4)

        def constant(value):
            return ir.Constant(vector, [ir.Constant(_I32, value)] * 16)

        def loop_of(convert):
            groups = b.lshr(b.add(args[2], ir.Constant(_I64, 15)), ir.Constant(_I64, 4))
            with cgutils.for_range(b, groups) as loop:
                place = b.shl(loop.index, ir.Constant(_I64, 4))
                found = convert(b.zext(load(b, b.gep(source, [place]), narrow), vector))
                here = b.bitcast(b.gep(target, [place]), vector.as_pointer())
                b.store(found, here, align=4)

        def bfloat16(bits):
            return b.shl(bits, constant(16))

        def float16(bits):
            magnitude = b.shl(b.and_(bits, constant(0x7FFF)), constant(13))
            scale = ir.Constant(floats, [ir.Constant(ir.FloatType(), 2.0**112)] * 16)
            value = b.bitcast(b.fmul(b.bitcast(magnitude, floats), scale), vector)
            special = b.icmp_unsigned(">=", magnitude, constant(0x7C00 << 13))
            value = b.select(special, b.or_(magnitude, constant(0x7F800000)), value)
            return b.or_(value, b.shl(b.and_(bits, constant(0x8000)), constant(16)))

        with b.if_else(b.icmp_signed("==", args[3], ir.Constant(_I64, BFLOAT16))) as (yes, no):
            with yes:
                loop_of(bfloat16)
            with no:
                loop_of(float16)
        return context.get_dummy_value()

    return types.void(words, types.int64, types.int64, types.int64, out), codegen


@intrinsic(prefer_literal=True)
def add_stored(typingctx, values, at, columns, count, x, x_at, sums, sums_at, width):
    """Add `count` values, times x at their columns, to the sums (4, width) from sums_at on.

    values: float32 or float64, from `at` on; columns: uint16, of `columns_of`;
    x: entry r of column c at x_at + c width + r, for `width` (a literal) right-hand sides.
    """
    sides = width.literal_value
    signature = types.void(
        values, types.int64, columns, types.int64, x, types.int64, sums, types.int64, width
    )

    def codegen(context, b, signature, args):
        def data(index):
            return context.make_array(signature.args[index])(context, b, args[index]).data

        source, where = b.gep(data(0), [args[1]]), data(2)
        other, home = b.gep(data(4), [args[5]]), b.gep(data(6), [args[7]])
        element, count = source.type.pointee, args[3]
        size = 8 if isinstance(element, ir.DoubleType) else 4
        vector = ir.VectorType(element, sides)
        homes = [b.gep(home, [ir.Constant(_I64, s * sides)]) for s in range(SUMS)]
        slots = [cgutils.alloca_once_value(b, load(b, place, vector)) for place in homes]

        def add(slot, index):
            column = b.zext(b.load(b.gep(where, [index])), _I64)
            found = load(b, b.gep(other, [b.mul(column, ir.Constant(_I64, sides))]), vector)
            value = _splat(b, b.load(b.gep(source, [index])), vector)
            b.store(fused(b, value, found, b.load(slot)), slot)

        turns = b.lshr(count, ir.Constant(_I64, 2))
        with cgutils.for_range(b, turns) as loop:
            first = b.shl(loop.index, ir.Constant(_I64, 2))
            for s, slot in enumerate(slots):
                add(slot, b.add(first, ir.Constant(_I64, s)))
        done, rest = b.shl(turns, ir.Constant(_I64, 2)), b.and_(count, ir.Constant(_I64, 3))
        for s, slot in enumerate(slots[:-1]):
            with b.if_then(b.icmp_unsigned(">", rest, ir.Constant(_I64, s))):
                add(slot, b.add(done, ir.Constant(_I64, s)))
        for place, slot in zip(homes, slots, strict=True):
            b.store(b.load(slot), b.bitcast(place, vector.as_pointer()), align=size)
        return context.get_dummy_value()

    return signature, codegen


def _splat(b, value, vector):
    one = b.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(_I32, 0))
    lanes = ir.Constant(ir.VectorType(_I32, vector.count), [0] * vector.count)
    return b.shuffle_vector(one, ir.Constant(vector, ir.Undefined), lanes)


@compiled(inline="always")
def floats_of(words, kind, at, count, room):
    """The floats of `count` words of 16 bits from `at` on, into `room`, which has 15 to spare."""
    if at + count + 15 <= words.size:
        widen(words, at, count, kind, room)
    else:
        for k in range(count):
            room[k] = wide(words[at + k], kind)


def add_row(words, kind, at, count, room, columns, x, x_at, sums, sums_at, width):
    """`add_stored` of words of any kind; those of 16 bits are made floats in `room` first."""
    raise RuntimeError("only compiled code calls this; its overloads are below")


@overload(add_row, inline="always", prefer_literal=True)
def _add_row(words, kind, at, count, room, columns, x, x_at, sums, sums_at, width):
    if words.dtype in (types.float32, types.float64):
        return lambda words, kind, at, count, room, columns, x, x_at, sums, sums_at, width: (
            add_stored(words, at, columns, count, x, x_at, sums, sums_at, width)
        )

    def widened(words, kind, at, count, room, columns, x, x_at, sums, sums_at, width):
        floats_of(words, kind, at, count, room)
        add_stored(room, 0, columns, count, x, x_at, sums, sums_at, width)

    return widened


@compiled
def side_by_side(words, kind, n, sides, width, X):
    """Rows of n words as X: `width` sides together, column after column; then the next sides."""
    zero = X.dtype.type(0)
    for first in range(0, sides, width):
        count, to = min(width, sides - first), first * n
        for j in range(n):
            for r in range(count):
                X[to + j * width + r] = X.dtype.type(wide(words[(first + r) * n + j], kind))
            for r in range(count, width):
                X[to + j * width + r] = zero


@compiled
def stored_rows(words, kind, bits, offsets, n, places, X, Y, sides, width, low, high):
    """Y (sides, m), flat, in rows low to high.

    words: float32, float64, or uint16 of the `kind`; X: as `side_by_side` lays it, `width` (8 or
        16) at a time.
    """
    m, row_bytes = offsets.size, (n + 7) // 8
    columns, room = np.empty(TILE + WORD, np.uint16), np.empty(TILE + 15, X.dtype)
    sums = np.empty(SUMS * width, X.dtype)
    for first in range(0, sides, width):
        for i in range(low, high):
            sums[:] = 0
            at = offsets[i]
            for j in range(0, n, TILE):
                part, x = (min(TILE, n - j) + 7) // 8, first * n + j * width
                count = columns_of(bits, i * row_bytes + j // 8, part, places, columns)
                if width == 8:
                    add_row(words, kind, at, count, room, columns, X, x, sums, 0, 8)
                else:
                    add_row(words, kind, at, count, room, columns, X, x, sums, 0, 16)
                at += count
            for r in range(min(width, sides - first)):
                even = sums[r] + sums[r + 2 * width]
                odd = sums[r + width] + sums[r + 3 * width]
                # Turns -0 into 0, as the other ways do.
                Y[(first + r) * m + i] = even + odd + X.dtype.type(0)
