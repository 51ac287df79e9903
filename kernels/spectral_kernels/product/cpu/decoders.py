"""Stored values to vectors: a group of columns, each column's value in its lane, zeros elsewhere.

The values are loaded without regard to alignment and spread over the lanes whose bit is 1:

    AVX2     a table's row for the byte of the mask says to `vpshufb` where each byte comes from
    AVX-512  `vexpandps`, `vpexpandw` from a register

The places of a word's groups come from one shift and one count each, not one from the other.
"""

# mypy: ignore-errors
# This builds code for the compiler, whose values have no types that mypy knows.

from typing import NamedTuple

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
#: Bits of the mask that are loaded at once.
WORD = 64

llvm.initialize_native_asmparser()  # for the one instruction that `avx512` names


class Decoder(NamedTuple):
    """How a group is decoded: its lanes, the sums' type, and what builds its vector."""

    width: int
    element: ir.Type
    decode: object


def load(b, pointer, vector):
    """A vector from an address that is aligned to an element only."""
    size = {"float": 4, "double": 8, "i8": 1, "i16": 2}[str(vector.element)]
    return b.load(b.bitcast(pointer, vector.as_pointer()), align=size)


def ones_below(b, word, bit):
    """How many of a word's bits below `bit` are 1."""
    if bit == 0:
        return ir.Constant(_I64, 0)
    return b.ctpop(b.shl(word, ir.Constant(_I64, WORD - bit)))


def function(b, name, result, arguments):
    return cgutils.get_or_insert_function(b.module, ir.FunctionType(result, arguments), name)


def fused(b, value, other, total):
    """value x other + total of vectors, rounded once."""
    vector = total.type
    kind = "f64" if isinstance(vector.element, ir.DoubleType) else "f32"
    name = f"llvm.fma.v{vector.count}{kind}"
    return b.call(function(b, name, vector, [vector] * 3), [value, other, total])


def avx2(b, dtype, table):
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
        return b.call(function(b, name, where.type, [where.type] * 2), [source, where])

    def decode32(here, word, group):
        halves = [
            load(b, b.gep(here, [ones_below(b, word, 8 * group + bit)]), pair) for bit in (0, 4)
        ]
        eight = ir.Constant(ir.VectorType(_I32, 8), [ir.Constant(_I32, i) for i in range(8)])
        both = b.bitcast(b.shuffle_vector(*halves, eight), bytes32)
        return b.bitcast(spread(both, row(word, group, 32)), single)

    def decode_bfloat16(here, word, group):
        found = b.gep(here, [ones_below(b, word, 8 * group)])
        found = b.load(b.bitcast(found, bytes16.as_pointer()), align=2)
        twice = ir.Constant(ir.VectorType(_I32, 32), [ir.Constant(_I32, i % 16) for i in range(32)])
        both = b.shuffle_vector(found, found, twice)
        return b.bitcast(spread(both, row(word, group, 32)), single)

    def decode_float16(here, word, group):
        found = b.gep(here, [ones_below(b, word, 8 * group)])
        found = b.load(b.bitcast(found, bytes16.as_pointer()), align=2)
        half = b.bitcast(spread(found, row(word, group, 16)), ir.VectorType(ir.HalfType(), 8))
        return b.fpext(half, single)

    decode = {
        types.float32: decode32,
        types.uint16: decode_bfloat16,
        types.int16: decode_float16,
    }[dtype]
    return Decoder(8, ir.FloatType(), decode)


def avx512(b, dtype, _):
    """Sixteen columns at a time, float32 sums; eight, float64 sums, of float64.

    The expansion is one from a register. That from memory, which LLVM would make of the two, reads
    nothing beyond the values and is microcode on Zen 4: 1.9 ns for sixteen columns, not 1.0.
    """
    width = 8 if dtype == types.float64 else 16
    element = ir.DoubleType() if dtype == types.float64 else ir.FloatType()
    stored = {types.float32: element, types.float64: element}.get(dtype, _I16)
    kind, flags = ir.VectorType(stored, width), ir.IntType(width)
    name = {"float": "vexpandps", "double": "vexpandpd", "i16": "vpexpandw"}[str(stored)]
    spread = ir.InlineAsm(
        ir.FunctionType(kind, [kind, flags]), f"{name} $1, $0 {{$2}} {{z}}", "=v,v,^Yk"
    )

    def decode(here, word, group):
        bit = width * group
        mask = b.trunc(b.lshr(word, ir.Constant(_I64, bit)), flags)
        found = load(b, b.gep(here, [ones_below(b, word, bit)]), kind)
        value = b.call(spread, [found, mask])
        single = ir.VectorType(element, width)
        if dtype == types.int16:
            return b.fpext(b.bitcast(value, ir.VectorType(ir.HalfType(), width)), single)
        if dtype == types.uint16:
            wide = b.zext(value, ir.VectorType(_I32, width))
            sixteen = ir.Constant(wide.type, [ir.Constant(_I32, 16)] * width)
            return b.bitcast(b.shl(wide, sixteen), single)
        return value

    return Decoder(width, element, decode)
