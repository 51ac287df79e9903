"""One row of the product in vector instructions, built as LLVM's own code.

A word of 64 bits of the mask is handled as groups of columns, as many as a vector has lanes. A
group's values stand one after another; they are spread over the lanes whose bit is 1, zeros
elsewhere (`decoders`), then multiplied by x and added, in one rounding, to the sums of the columns'
lanes. There are 32 lanes a right-hand side whatever the vector's width, so every way gives the same
bits; see `oracle`. Only the place of a word's first value depends on the word before: one addition
for 64 columns.
"""

# mypy: ignore-errors
# This builds code for the compiler, whose values have no types that mypy knows.

from contextlib import contextmanager
from typing import NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from spectral_kernels.product.cpu import decoders
from spectral_kernels.product.cpu.decoders import WORD, function, fused, load
from spectral_kernels.product.oracle import LANES

_I8, _I32, _I64 = (ir.IntType(bits) for bits in (8, 32, 64))
#: Values that may be read, and not used, beyond the last of a row.
SPARE = 16
#: Bytes from a word's values to the lines that are fetched meanwhile, as many as a word of a matrix
#: half full takes in float32. On Zen 3 and 8192 x 8192, beside other load: 14 to 17 ms without, 12
#: to 17 with at half zeros (1.1 to 1.2 times dense, not .9); no difference beyond noise at 70 %.
_AHEAD = (4096, 4160)


@intrinsic(prefer_literal=True)
def row_products(typingctx, words, at, bits, byte, width, table, x, stride, y, y_at, step, count):
    """Products of one row with `count` (a literal, 1 or 2) right-hand sides.

    words: values, float32 or float64, or the bits of bfloat16 as uint16, of float16 as int16;
        at: the row's first. Up to SPARE beyond the row's last are read.
    bits: uint8; byte: the row's first; width: how many bytes the row has.
    table: uint8, of `tables`, for the AVX2 way; uint16, empty, for the AVX-512 way.
    x: float32 or float64, finite, right-hand sides `stride` apart, each 0 from the row's end to
        the next multiple of 64.
    y: what is set, at y_at + r step.
    """
    avx2, sides = table.dtype == types.uint8, count.literal_value
    signature = types.void(
        words, types.int64, bits, types.int64, types.int64, table, x, types.int64, y,
        types.int64, types.int64, count,
    )  # fmt: skip

    def codegen(context, b, signature, args):
        row = _Row(context, b, signature, args, avx2)
        groups = range(LANES // row.decoder.width)
        zero = ir.Constant(row.vector, [0.0] * row.decoder.width)
        sums = [[cgutils.alloca_once_value(b, zero) for _ in groups] for _ in range(sides)]
        _add_products(b, row, row.data(6), args[7], sums)
        for side in range(sides):
            place = b.add(args[9], b.mul(args[10], ir.Constant(_I64, side)))
            total = _tree(b, [b.load(slot) for slot in sums[side]], row.vector)
            b.store(total, b.gep(row.data(8), [place]))
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
        row = _Row(context, b, signature, args, avx2)
        target, decoder = b.gep(row.data(6), [args[7]]), row.decoder
        with _words_of_row(b, row) as (here, word, column):
            for group in range(WORD // decoder.width):
                place = b.add(column, ir.Constant(_I64, group * decoder.width))
                place = b.bitcast(b.gep(target, [place]), row.vector.as_pointer())
                b.store(decoder.decode(here, word, group), place, align=4)
        return context.get_dummy_value()

    return signature, codegen


class _Row:
    """The first six arguments of what works on a row, as the addresses they stand for."""

    def __init__(self, context, b, signature, args, avx2):
        def data(at):
            return context.make_array(signature.args[at])(context, b, args[at]).data

        self.data = data
        self.values, self.mask = b.gep(data(0), [args[1]]), b.gep(data(2), [args[3]])
        make = decoders.avx2 if avx2 else decoders.avx512
        self.decoder = make(b, signature.args[0].dtype, data(5) if avx2 else None)
        self.vector = ir.VectorType(self.decoder.element, self.decoder.width)
        self.full, self.tail = _tail(b, self.mask, args[4])
        self.before = cgutils.alloca_once(b, _I64)


@contextmanager
def _words_of_row(b, row):
    """A loop over the row's words: gives where the word's values are, the word, its column."""
    b.store(ir.Constant(_I64, 0), row.before)
    with cgutils.for_range(b, b.add(row.full, row.tail.has)) as loop:
        inside = b.icmp_signed("<", loop.index, row.full)
        source = b.gep(row.mask, [b.mul(loop.index, ir.Constant(_I64, 8))])
        source = b.select(inside, source, b.bitcast(row.tail.slot, _I8.as_pointer()))
        word = b.load(b.bitcast(source, _I64.as_pointer()), align=1)
        start = b.load(row.before)
        here = b.gep(row.values, [start])
        for line in _AHEAD:
            ahead = b.gep(b.bitcast(here, _I8.as_pointer()), [ir.Constant(_I64, line)])
            flags = [ir.Constant(_I32, flag) for flag in (0, 3, 1)]  # read, keep, data
            kinds = [_I8.as_pointer(), _I32, _I32, _I32]
            b.call(function(b, "llvm.prefetch.p0", ir.VoidType(), kinds), [ahead, *flags])
        yield here, word, b.mul(loop.index, ir.Constant(_I64, WORD))
        b.store(b.add(start, b.ctpop(word)), row.before)


def _add_products(b, row, x, stride, sums):
    """Add the products of the row to slots [side][group of lanes]."""
    decoder, vector = row.decoder, row.vector
    with _words_of_row(b, row) as (here, word, column):
        for group in range(WORD // decoder.width):
            value = decoder.decode(here, word, group)
            for side, slots in enumerate(sums):
                place = b.add(column, ir.Constant(_I64, group * decoder.width))
                if side:
                    place = b.add(place, b.mul(stride, ir.Constant(_I64, side)))
                other = load(b, b.gep(x, [place]), vector)
                slot = slots[group % len(slots)]
                b.store(fused(b, value, other, b.load(slot)), slot)


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
