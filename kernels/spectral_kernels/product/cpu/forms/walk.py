"""A step of a walk along gaps: the columns of a tile's values, and their products with x.

A gap is the number of zeros before a value; entries are counted through all rows. A walk is at byte
d of the gaps and stands at entry p.
"""

# mypy: ignore-errors
# This builds code for the compiler, whose values have no types that mypy knows.

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from spectral_kernels._numba import compiled
from spectral_kernels.product.cpu.decoders import load
from spectral_kernels.product.cpu.stored import floats_of
from spectral_kernels.product.oracle import LANES

#: A byte that says that so many zeros lie here and no value yet.
MORE = 255


@intrinsic
def sixteen(typingctx, deltas, d, start, limit, columns, at):
    """The columns of the next 16 gaps, where the first counts from `start`, into `columns` from
    `at` on; how many of them hold, int64: those before a byte of 255 and below `limit`.

    start is below 2^15. All 16 entries of `columns` are written.
    """

    def codegen(context, b, signature, args):
        def data(index):
            return context.make_array(signature.args[index])(context, b, args[index]).data

        i8, i16, i32, i64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
        narrow, vector = ir.VectorType(i8, 16), ir.VectorType(i16, 16)

        def splat(value):
            one = b.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(i32, 0))
            lanes = ir.Constant(ir.VectorType(i32, 16), [0] * 16)
            return b.shuffle_vector(one, ir.Constant(vector, ir.Undefined), lanes)

        gaps = b.zext(load(b, b.gep(data(0), [args[1]]), narrow), vector)
        sums, zero = b.add(gaps, splat(ir.Constant(i16, 1))), ir.Constant(vector, [0] * 16)
        for step in (1, 2, 4, 8):  # the sums of all gaps so far
            lanes = [16] * step + list(range(16 - step))  # 16: the first of `zero`
            moved = ir.Constant(ir.VectorType(i32, 16), lanes)
            sums = b.add(sums, b.shuffle_vector(sums, zero, moved))
        found = b.add(sums, splat(b.trunc(b.sub(args[2], ir.Constant(i64, 1)), i16)))
        b.store(found, b.bitcast(b.gep(data(4), [args[5]]), vector.as_pointer()), align=2)
        below = b.icmp_unsigned("<", found, splat(b.trunc(args[3], i16)))
        here = b.and_(below, b.icmp_unsigned("!=", gaps, splat(ir.Constant(i16, MORE))))
        wrong = b.zext(b.not_(b.bitcast(here, i16)), i32)
        return b.zext(
            b.cttz(b.or_(wrong, ir.Constant(i32, 1 << 16)), ir.Constant(ir.IntType(1), 1)), i64
        )

    return types.int64(deltas, types.int64, types.int64, types.int64, columns, types.int64), codegen


@compiled(inline="always")
def columns_of(deltas, d, p, first, stop, columns):
    """The places of values below `stop`, less `first`, into `columns`; how many, and d and p.

    `stop` is at most TILE beyond `first`; `columns` has room for TILE + 16.
    """
    count = 0
    while d < deltas.size and p < stop:  # p is beyond where gaps of 255 have led there
        if d + 16 <= deltas.size:
            found = sixteen(deltas, d, p - first, stop - first, columns, count)
            if found:
                d += found
                count += found
                p = first + np.int64(columns[count - 1]) + 1
            if found == 16:
                continue
            if d >= deltas.size:
                break
        gap = np.int64(deltas[d])
        if gap == MORE:
            p += gap
            d += 1
        elif p + gap >= stop:
            break
        else:
            columns[count] = p + gap - first
            count += 1
            d += 1
            p += gap + 1
    return count, d, p


@intrinsic
def add_by_column(typingctx, values, at, columns, count, x, x_at, lanes, home):
    """Add `count` values, times x at their columns, each to the sum of its column's lane.

    values: float32 or float64, from `at` on; x: column c at x_at + c; lanes: the sums, from `home`
    on. Written out, since what Numba makes of it looks at each index for being negative.
    """
    signature = types.void(
        values, types.int64, columns, types.int64, x, types.int64, lanes, types.int64
    )

    def codegen(context, b, signature, args):
        def data(index):
            return context.make_array(signature.args[index])(context, b, args[index]).data

        i64 = ir.IntType(64)
        source, where = b.gep(data(0), [args[1]]), data(2)
        other, home = b.gep(data(4), [args[5]]), b.gep(data(6), [args[7]])
        with cgutils.for_range(b, args[3]) as loop:
            column = b.zext(b.load(b.gep(where, [loop.index])), i64)
            slot = b.gep(home, [b.and_(column, ir.Constant(i64, LANES - 1))])
            value, factor = b.load(b.gep(source, [loop.index])), b.load(b.gep(other, [column]))
            b.store(b.fma(value, factor, b.load(slot)), slot)
        return context.get_dummy_value()

    return signature, codegen


def add_tile(words, kind, at, count, room, columns, X, first, stride, sides, lanes):
    """`add_by_column` for each side, r stride + first on; words of 16 bits become floats in `room`
    first.
    """
    raise RuntimeError("only compiled code calls this; its overloads are below")


@overload(add_tile, inline="always")
def _add_tile(words, kind, at, count, room, columns, X, first, stride, sides, lanes):
    if words.dtype in (types.float32, types.float64):

        def as_they_are(words, kind, at, count, room, columns, X, first, stride, sides, lanes):
            for r in range(sides):
                add_by_column(words, at, columns, count, X, r * stride + first, lanes, r * LANES)

        return as_they_are

    def widened(words, kind, at, count, room, columns, X, first, stride, sides, lanes):
        floats_of(words, kind, at, count, room)
        for r in range(sides):
            add_by_column(room, 0, columns, count, X, r * stride + first, lanes, r * LANES)

    return widened
