"""What Numba does not offer: count of ones, bits as floats, fused a b + c, memory at an address.

Each is one instruction, or none, on processors that have it; LLVM calls its own code elsewhere.
"""

# mypy: ignore-errors
# Compiled code has no types to check: Numba gives its own.

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


@intrinsic
def popcount(typingctx, word):
    """How many bits of an unsigned integer are 1, as int64."""

    def codegen(context, builder, signature, args):
        found = builder.ctpop(args[0])
        return builder.zext(found, ir.IntType(64)) if found.type.width < 64 else found

    return types.int64(word), codegen


@intrinsic
def float32_of(typingctx, word):
    """The float32 whose bits are a uint32."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), codegen


@intrinsic
def float64_of(typingctx, word):
    """The float64 whose bits are a uint64."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.uint64), codegen


@intrinsic
def fused(typingctx, a, b, c):
    """a b + c of three floats of one type, rounded once."""

    def codegen(context, builder, signature, args):
        return builder.fma(*args)

    return c(c, c, c), codegen


@intrinsic
def pointer_of(typingctx, address, like):
    """The int64 address as a pointer to entries of the dtype of the array `like`."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(like.dtype)(types.int64, like), codegen
