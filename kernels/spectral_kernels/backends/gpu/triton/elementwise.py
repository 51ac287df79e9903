"""What every Triton kernel does to loaded values: pure functions, no loads or stores.

They mirror `oracle`, product by product. Kernels are launched without contraction to fused
multiply-adds, so each product is rounded. `quotient` needs fused operations, and asks for them by
name.

Under Triton's interpreter (TRITON_INTERPRET=1) the same functions run in NumPy, which has no fused
multiply-add and cuts bfloat16 instead of rounding it. There `rescaled` divides and `as_type`
rounds by other means.
"""

import triton
import triton.language as tl

from spectral_kernels.reference.laws import Base, Shape
from spectral_kernels.reference.stream import KEY_INCREMENTS, MULTIPLIERS, ROUNDS, UNIT

#: Whether the interpreter runs these functions; read once, when this module is imported.
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))

_M0, _M1 = tl.constexpr(MULTIPLIERS[0]), tl.constexpr(MULTIPLIERS[1])
_W0, _W1 = tl.constexpr(KEY_INCREMENTS[0]), tl.constexpr(KEY_INCREMENTS[1])
_ROUNDS = tl.constexpr(ROUNDS)
_UNIT = tl.constexpr(float(UNIT))
_UNIT_STEP = tl.constexpr(1.0 / UNIT)

_PRINCIPAL = tl.constexpr(int(Base.PRINCIPAL))
_ALIGNED = tl.constexpr(int(Base.ALIGNED))
_MIXTURE = tl.constexpr(int(Base.MIXTURE))
_L1, _L2 = tl.constexpr(int(Shape.L1)), tl.constexpr(int(Shape.L2))
_HYBRID, _MAXIMUM = tl.constexpr(int(Shape.HYBRID)), tl.constexpr(int(Shape.MAXIMUM))

# The float32 after 2^-24.
_LEAST_RECIPROCAL = tl.constexpr(2.0**-24 + 2.0**-47)
# Powers of two that keep the division of large entries in range; see `quotient`.
_LARGE = tl.constexpr(2.0**100)
_LARGE_SCALE = tl.constexpr(2.0**-40)
_DOWN, _UP = tl.constexpr(2.0**-8), tl.constexpr(2.0**32)


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Four words of Philox4x32-10. A 64-bit product gives both halves in one instruction."""
    for _ in tl.static_range(_ROUNDS):
        product0 = c0.to(tl.uint64) * _M0
        product1 = c2.to(tl.uint64) * _M1
        c0 = (product1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (product0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = product1.to(tl.uint32)
        c3 = product0.to(tl.uint32)
        k0 = k0 + _W0
        k1 = k1 + _W1
    return c0, c1, c2, c3


@triton.jit
def words(row, quad, stream, k0, k1, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The words of the stream of a (ROWS, COLUMNS) tile, uint32.

    `row` int64 (ROWS, 1) is the logical row, `quad` uint32 (1, COLUMNS / 4) or, for two quads to a
    thread, (1, COLUMNS / 8): then each is the first of two. One Philox call serves four entries,
    whose words stay in the registers of one thread.
    """
    low = row.to(tl.uint32) + quad * 0
    high = (row >> 32).to(tl.uint32) + quad * 0
    w0, w1, w2, w3 = philox(quad + low * 0, low, high, stream + low * 0, k0, k1)
    if quad.shape[1] == COLUMNS // 8:
        v0, v1, v2, v3 = philox(quad + 1 + low * 0, low, high, stream + low * 0, k0, k1)
        w0, w1, w2, w3 = tl.join(w0, v0), tl.join(w1, v1), tl.join(w2, v2), tl.join(w3, v3)
    return tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (ROWS, COLUMNS))


@triton.jit
def draws(row, quad, stream, k0, k1, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The draws u in [0, 2^24) of a tile, int32; see `words`."""
    return (words(row, quad, stream, k0, k1, ROWS, COLUMNS) >> 8).to(tl.int32)


@triton.jit
def as_float32(x):
    """Loaded entries as float32; float64 is rounded, the others are exact."""
    if x.dtype == tl.bfloat16:
        a = (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        a = x.to(tl.float32)
    return a


@triton.jit
def score(a, b, b_weight, a_weight, BASE: tl.constexpr):
    """The base of the score of entries a, float32; b their low-rank value, if it has one."""
    if BASE == _PRINCIPAL:
        s = tl.where(a != 0, tl.abs(b), 0.0)
    elif BASE == _ALIGNED:
        product = a * b
        s = tl.where(product <= 0, 0.0, product)
    elif BASE == _MIXTURE:
        scaled_b = b * b_weight
        scaled_a = a * a_weight
        s = tl.where(a != 0, tl.sqrt_rn(scaled_b * scaled_b + scaled_a * scaled_a), 0.0)
    else:
        s = tl.abs(a)
    return s


@triton.jit
def probability(s, C, alpha, beta, scale, SHAPE: tl.constexpr):
    """t = min(floor(C g(x)), 2^24), int32, with x = s * scale: the probability times 2^24."""
    x = s * scale
    if SHAPE == _L1:
        g = x
    elif SHAPE == _L2:
        g = x * x
    elif SHAPE == _HYBRID:
        g = alpha * x + beta * (x * x)
    elif SHAPE == _MAXIMUM:
        g = tl.maximum(x, beta * (x * x))
    else:
        g = tl.where(x >= alpha, x * x, 0.0)
    return tl.minimum(C * g, _UNIT).to(tl.int32)


@triton.jit
def nearest_reciprocal(t, y):
    """The float32 nearest to 1 / t, from y within one ulp of it: one Newton step.

    t is an integer in [1, 2^24]; the tests go through all of them.
    """
    # From 2^-24 the step would not leave 2^-24, which is too low for the divisor 2^24 - 1.
    y = tl.maximum(y, _LEAST_RECIPROCAL)
    # A product with -1.0 becomes a sign of the operand; a negation would be an instruction.
    return tl.fma(y, tl.fma(t * -1.0, y, 1.0), y)


@triton.jit
def corrected_quotient(dividend, t, y):
    """dividend / t, rounded as IEEE division rounds, from the float32 y nearest to 1 / t.

    One Newton-Markstein step on the product dividend * y (Markstein, IBM J. Res. Dev. 34, 1990).
    The tests go through the quotients that come closest to a tie.
    """
    q = dividend * y
    return tl.fma(tl.fma(t * -1.0, q, dividend), y, q)


@triton.jit
def near_reciprocal(t):
    """1 / t to a relative error of 2^-23, in one instruction."""
    return tl.inline_asm_elementwise(
        "rcp.approx.ftz.f32 $0, $1;", "=f,f", [t], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def quotient(a, t, up, down):
    """a / (t / 2^24), float32, rounded as IEEE division rounds, without branches.

    What is divided is a * up, and the quotient is multiplied by down: 2^24 and 1, except that
    entries over 2^100 must be held under the overflow (2^-8 and 2^32). Dividing by the integer t,
    not by t / 2^24, keeps the remainder a 2^24 - t q a multiple of the least subnormal: it does not
    underflow, and the result is right for subnormals too.
    """
    return corrected_quotient(a * up, t, nearest_reciprocal(t, near_reciprocal(t))) * down


@triton.jit
def quotient_of_bfloat16(a, t, up, down):
    """As `quotient` for a bfloat16 number a, once the result is rounded to bfloat16.

    Without the Newton step the float32 quotient is the other neighbour of a tie that lies within
    2^-44 of it, relative. No quotient of an 8-bit significand by an integer up to 2^24 comes so
    close to one of the ties beside a midpoint of bfloat16, where that would show: the tests go
    through all of them.
    """
    return corrected_quotient(a * up, t, near_reciprocal(t)) * down


@triton.jit
def headroom(large):
    """(up, down) of `quotient`: where `large`, entries of 2^100 and more are in reach."""
    return tl.where(large, _DOWN, _UNIT), tl.where(large, _UP, 1.0)


@triton.jit
def rescaled(x, a, t, scale, LIMITED: tl.constexpr, NVIDIA: tl.constexpr):
    """Loaded entries x divided by their probability t / 2^24, float64 for float64, else float32.

    LIMITED says that the score is |a| itself, where `scale` tells how large the largest is: then
    one headroom serves all. (Under the other one entries below 2^-94 would be lost, but there the
    law drops them.) Where t is 0 the result means nothing.
    """
    if x.dtype == tl.float64:
        value = x / (tl.maximum(t, 1).to(tl.float64) * _UNIT_STEP)
    elif NVIDIA:
        if x.dtype == tl.float16:
            up, down = _UNIT, 1.0
        elif LIMITED:
            up, down = headroom(scale < _LARGE_SCALE)
        else:
            up, down = headroom(tl.abs(a) >= _LARGE)
        if x.dtype == tl.bfloat16:
            value = quotient_of_bfloat16(a, t.to(tl.float32), up, down)
        else:
            value = quotient(a, t.to(tl.float32), up, down)
    else:
        value = tl.div_rn(a, tl.maximum(t, 1).to(tl.float32) * _UNIT_STEP)
    return value


@triton.jit
def as_type(value, kind: tl.constexpr):
    """Values rounded to an element type, ties to even."""
    if INTERPRETED and kind == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        rounded = value.to(kind)
    return rounded


@triton.jit
def where_kept(ahead, value, kind: tl.constexpr, NVIDIA: tl.constexpr):
    """Values where `ahead` = u - t is negative, else 0, whatever the value there is; as `kind`.

    On NVIDIA two 16-bit entries go as one: a permutation of bytes that repeats the signs of two
    numbers makes the mask of both.
    """
    if NVIDIA and kind.primitive_bitwidth == 16:
        selected = tl.inline_asm_elementwise(
            "{ .reg .b32 mask; prmt.b32 mask, $2, $3, 0xffbb; and.b32 $0, $1, mask; }",
            "=r,r,r,r", [as_type(value, kind), ahead], dtype=tl.int16, is_pure=True, pack=2,
        ).to(kind, bitcast=True)  # fmt: skip
    elif value.dtype == tl.float32:
        masked = value.to(tl.int32, bitcast=True) & (ahead >> 31)
        selected = as_type(masked.to(tl.float32, bitcast=True), kind)
    else:
        selected = tl.where(ahead < 0, value, 0.0).to(kind)
    return selected
