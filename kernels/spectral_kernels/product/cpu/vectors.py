"""One row of the product in vector instructions, built as LLVM's own code.

A word of 64 bits of the mask is handled as groups of columns, as many as a vector has lanes. A
group's values stand one after another from `at` + (the ones of the word below the group) on; they
are loaded without regard to alignment and spread over the lanes whose bit is 1, zeros elsewhere:

    AVX2     a table's row for the byte of the mask says to `vpshufb` where each byte comes from
    AVX-512  `vexpandps`, `vpexpandw`, which LLVM calls a masked expanding load

then multiplied by x and added, in one rounding, to the sums of the columns' lanes. 32 lanes a right
hand side whatever the vector's width, so every way gives the same bits; see `oracle`. The places of
a word's groups come from one shift and one count each, not one from the other: only the sum over
whole words is a chain, one addition for 64 columns.
"""

# mypy: ignore-errors
# This builds code for the compiler, whose values have no types that mypy knows.

from contextlib import contextmanager
from typing import NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from spectral_kernels.product.cpu.plain import LANES

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_WORD = 64
#: Values that the AVX2 way may read, and not use, beyond the last of a row.
SPARE = 8


class _Decoder(NamedTuple):
    """How a group is decoded: its lanes, the sums' type, and what builds its vector."""

    width: int
    element: ir.Type
    decode: object


@intrinsic(prefer_literal=True)
def row_products(
    typingctx, words, at, bits, byte, width, table, x, stride, y, y_at, y_stride, count
):
    """Products of one row with `count` (a literal, 1, 2, 4 or 8) right-hand sides.

    words: values, float32 or float64, or the bits of bfloat16 as uint16, of float16 as int16;
        at: the row's first. The AVX2 way reads up to SPARE beyond the row's last.
    bits: uint8; byte: the row's first; width: how many bytes the row has.
    table: uint8, of `tables`, for the AVX2 way; uint16, empty, for the AVX-512 way.
    x: float32 or float64, finite, right-hand sides `stride` apart, each 0 from the row's end to
        the next multiple of 64.
    y: what is set, at y_at + r y_stride.
    """
    avx2, sides = table.dtype == types.uint8, count.literal_value
    signature = types.void(
        words, types.int64, bits, types.int64, types.int64, table, x, types.int64, y,
        types.int64, types.int64, count,
    )  # fmt: skip

    def codegen(context, b, signature, args):
        def data(at):
            return context.make_array(signature.args[at])(context, b, args[at]).data

        values = b.gep(data(0), [args[1]])
        mask = b.gep(data(2), [args[3]])
        decoder = (_avx2 if avx2 else _avx512)(b, words.dtype, data(5) if avx2 else None)
        full, tail = _tail(b, mask, args[4])
        # Sums that fit the registers: other groups of columns take further turns through the row.
        groups = LANES // decoder.width
        at_once = max(1, min(groups, (8 if avx2 else 16) // sides))
        vector = ir.VectorType(decoder.element, decoder.width)
        sums = [[None] * groups for _ in range(sides)]
        for first in range(0, groups, at_once):
            mine = range(first, first + at_once)
            found = _turn(b, values, mask, full, tail, decoder, mine, data(6), args[7], sides)
            for side in range(sides):
                sums[side][first : first + at_once] = found[side]
        for side in range(sides):
            place = b.add(args[9], b.mul(args[10], ir.Constant(_I64, side)))
            b.store(_tree(b, sums[side], vector), b.gep(data(8), [place]))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def row_values(typingctx, words, at, bits, byte, width, table, out, out_at):
    """One row decoded: out gets its entries as the sums' type, and 0 up to the next multiple of 64.

    Arguments as in `row_products`.
    """
    avx2 = table.dtype == types.uint8
    signature = types.void(
        words, types.int64, bits, types.int64, types.int64, table, out, types.int64
    )

    def codegen(context, b, signature, args):
        def data(at):
            return context.make_array(signature.args[at])(context, b, args[at]).data

        values, mask = b.gep(data(0), [args[1]]), b.gep(data(2), [args[3]])
        decoder = (_avx2 if avx2 else _avx512)(b, words.dtype, data(5) if avx2 else None)
        target = b.gep(data(6), [args[7]])
        vector = ir.VectorType(decoder.element, decoder.width)
        with _words_of_row(b, values, mask, *_tail(b, mask, args[4])) as (here, word, column):
            for group in range(_WORD // decoder.width):
                value = decoder.decode(here, word, group)
                place = b.add(column, ir.Constant(_I64, group * decoder.width))
                place = b.bitcast(b.gep(target, [place]), vector.as_pointer())
                b.store(value, place, align=4)
        return context.get_dummy_value()

    return signature, codegen


@contextmanager
def _words_of_row(b, values, mask, full, tail):
    """A loop over the row's words: gives where the word's values are, the word, its column."""
    before = cgutils.alloca_once_value(b, ir.Constant(_I64, 0))
    with cgutils.for_range(b, b.add(full, tail.has)) as loop:
        inside = b.icmp_signed("<", loop.index, full)
        source = b.gep(mask, [b.mul(loop.index, ir.Constant(_I64, 8))])
        source = b.select(inside, source, b.bitcast(tail.slot, _I8.as_pointer()))
        word = b.load(b.bitcast(source, _I64.as_pointer()), align=1)
        start = b.load(before)
        yield b.gep(values, [start]), word, b.mul(loop.index, ir.Constant(_I64, _WORD))
        b.store(b.add(start, b.ctpop(word)), before)


def _turn(b, values, mask, full, tail, decoder, mine, x, stride, sides):
    """Sums of the groups `mine` of every 32 columns over the whole row: vectors [side][group]."""
    vector = ir.VectorType(decoder.element, decoder.width)
    zero = ir.Constant(vector, [0.0] * decoder.width)
    sums = [[cgutils.alloca_once_value(b, zero) for _ in mine] for _ in range(sides)]
    name = f"llvm.fma.v{decoder.width}f{64 if str(decoder.element) == 'double' else 32}"
    fused = _function(b, name, vector, [vector] * 3)
    with _words_of_row(b, values, mask, full, tail) as (here, word, column):
        for group in range(_WORD // decoder.width):
            lane = group % (LANES // decoder.width)
            if lane not in mine:
                continue
            value = decoder.decode(here, word, group)
            for side in range(sides):
                place = b.add(column, ir.Constant(_I64, group * decoder.width))
                if side:
                    place = b.add(place, b.mul(stride, ir.Constant(_I64, side)))
                other = _load(b, b.gep(x, [place]), vector)
                slot = sums[side][lane - mine.start]
                b.store(b.call(fused, [value, other, b.load(slot)]), slot)
    return [[b.load(slot) for slot in row] for row in sums]


class _Tail(NamedTuple):
    """The row's last word where its bytes are not a multiple of eight: its slot, and 0 or 1."""

    slot: object
    has: object


def _tail(b, mask, width):
    """How many whole words the row has, and the rest of its bytes as one more."""
    full = b.sdiv(width, ir.Constant(_I64, 8))
    start = b.mul(full, ir.Constant(_I64, 8))
    rest = b.sub(width, start)
    slot = cgutils.alloca_once_value(b, ir.Constant(_I64, 0))
    with cgutils.for_range(b, rest) as loop:
        byte = b.zext(b.load(b.gep(mask, [b.add(start, loop.index)])), _I64)
        shifted = b.shl(byte, b.mul(loop.index, ir.Constant(_I64, 8)))
        b.store(b.or_(b.load(slot), shifted), slot)
    has = b.zext(b.icmp_signed(">", rest, ir.Constant(_I64, 0)), _I64)
    return full, _Tail(slot, has)


def _tree(b, sums, vector):
    """The sum of all lanes, halves onto each other; -0 becomes 0."""
    sums = list(sums)
    while len(sums) > 1:
        half = len(sums) // 2
        sums = [b.fadd(sums[i], sums[i + half]) for i in range(half)]
    (found,), width = sums, vector.count
    while width > 1:
        width //= 2
        low, high = ([ir.Constant(_I32, i + s) for i in range(width)] for s in (0, width))
        parts = [
            b.shuffle_vector(found, found, ir.Constant(ir.VectorType(_I32, width), list(lanes)))
            for lanes in (low, high)
        ]
        found = b.fadd(*parts)
    return b.fadd(b.extract_element(found, ir.Constant(_I32, 0)), ir.Constant(vector.element, 0.0))


def _load(b, pointer, vector):
    """A vector from an address that is aligned to an element only."""
    size = {"float": 4, "double": 8, "i8": 1, "i16": 2}[str(vector.element)]
    return b.load(b.bitcast(pointer, vector.as_pointer()), align=size)


def _ones_below(b, word, bit):
    """How many of a word's bits below `bit` are 1."""
    if bit == 0:
        return ir.Constant(_I64, 0)
    return b.ctpop(b.shl(word, ir.Constant(_I64, _WORD - bit)))


def _function(b, name, result, arguments):
    return cgutils.get_or_insert_function(b.module, ir.FunctionType(result, arguments), name)


def _avx2(b, dtype, table):
    """Eight columns at a time, float32 sums."""
    single, pair = ir.VectorType(ir.FloatType(), 8), ir.VectorType(ir.FloatType(), 4)
    bytes32, bytes16 = ir.VectorType(_I8, 32), ir.VectorType(_I8, 16)

    def row(word, group, size):
        """The table's row for the group's byte; its size is 32 or 16."""
        shift = 8 * group - (5 if size == 32 else 4)
        moved = b.lshr(word, ir.Constant(_I64, shift)) if shift > 0 else None
        if moved is None:
            moved = b.shl(word, ir.Constant(_I64, -shift))
        place = b.and_(moved, ir.Constant(_I64, 255 * size))
        kind = bytes32 if size == 32 else bytes16
        return b.load(b.bitcast(b.gep(table, [place]), kind.as_pointer()), align=size)

    def spread(source, where):
        name = "llvm.x86.avx2.pshuf.b" if where.type == bytes32 else "llvm.x86.ssse3.pshuf.b.128"
        return b.call(_function(b, name, where.type, [where.type] * 2), [source, where])

    def decode32(here, word, group):
        halves = [
            _load(b, b.gep(here, [_ones_below(b, word, 8 * group + bit)]), pair) for bit in (0, 4)
        ]
        eight = ir.Constant(ir.VectorType(_I32, 8), [ir.Constant(_I32, i) for i in range(8)])
        both = b.bitcast(b.shuffle_vector(*halves, eight), bytes32)
        return b.bitcast(spread(both, row(word, group, 32)), single)

    def decode_bfloat16(here, word, group):
        found = b.gep(here, [_ones_below(b, word, 8 * group)])
        found = b.load(b.bitcast(found, bytes16.as_pointer()), align=2)
        twice = ir.Constant(ir.VectorType(_I32, 32), [ir.Constant(_I32, i % 16) for i in range(32)])
        both = b.shuffle_vector(found, found, twice)
        return b.bitcast(spread(both, row(word, group, 32)), single)

    def decode_float16(here, word, group):
        found = b.gep(here, [_ones_below(b, word, 8 * group)])
        found = b.load(b.bitcast(found, bytes16.as_pointer()), align=2)
        half = b.bitcast(spread(found, row(word, group, 16)), ir.VectorType(ir.HalfType(), 8))
        return b.fpext(half, single)

    decode = {
        types.float32: decode32,
        types.uint16: decode_bfloat16,
        types.int16: decode_float16,
    }[dtype]
    return _Decoder(8, ir.FloatType(), decode)


def _avx512(b, dtype, _):
    """Sixteen columns at a time, float32 sums; eight, float64 sums, of float64."""
    width = 8 if dtype == types.float64 else 16
    element = ir.DoubleType() if dtype == types.float64 else ir.FloatType()
    stored = {types.float32: element, types.float64: element}.get(dtype, _I16)
    kind, flags = ir.VectorType(stored, width), ir.VectorType(ir.IntType(1), width)
    suffix = {"float": "f32", "double": "f64", "i16": "i16"}[str(stored)]

    def decode(here, word, group):
        bit = width * group
        mask = b.trunc(b.lshr(word, ir.Constant(_I64, bit)), ir.IntType(width))
        found = b.gep(here, [_ones_below(b, word, bit)])
        found = b.bitcast(found, stored.as_pointer())
        name = f"llvm.masked.expandload.v{width}{suffix}"
        expand = _function(b, name, kind, [stored.as_pointer(), flags, kind])
        value = b.call(expand, [found, b.bitcast(mask, flags), ir.Constant(kind, None)])
        single = ir.VectorType(element, width)
        if dtype == types.int16:
            return b.fpext(b.bitcast(value, ir.VectorType(ir.HalfType(), width)), single)
        if dtype == types.uint16:
            wide = b.zext(value, ir.VectorType(_I32, width))
            sixteen = ir.Constant(wide.type, [ir.Constant(_I32, 16)] * width)
            return b.bitcast(b.shl(wide, sixteen), single)
        return value

    return _Decoder(width, element, decode)
