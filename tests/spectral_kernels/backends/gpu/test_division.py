"""The division of the Triton kernels, step by step on the CPU, against IEEE division.

The functions under test are the kernels' own, run as plain Python on NumPy arrays: `tl.fma` is the
processor's fused multiply-add, and the approximate reciprocal either value that its documented
error of at most one ulp allows: the nearest float32, or the one on the other side.
"""

import math
from collections.abc import Callable, Iterator
from types import FunctionType, SimpleNamespace

import numba
import numpy as np
import pytest
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray
from spectral_kernels.backends.gpu.triton import elementwise
from spectral_kernels.reference import oracle

Float32 = NDArray[np.float32]
UNIT = 1 << 24
#: Quotients are tried within this many units of 1 / (2 t) ulp of a tie. Before its last rounding a
#: quotient is off by at most 2.5 * 2^-24 ulp, so beyond five units no rounding can go wrong,
NEAREST = 6
#: nor can any with a divisor so small that one unit is more than that.
SMALLEST = 1 << 20


@intrinsic
def _fma(context, a, b, c):
    number = types.float32
    return number(number, number, number), lambda _, build, signature, numbers: build.fma(*numbers)


@numba.vectorize(["float32(float32, float32, float32)"])
def fma(a, b, c):
    return _fma(a, b, c)


def device_function(function: object, nearest: bool = True) -> Callable[..., Float32]:
    """A kernel's function with Triton's operations replaced."""

    def approximate(
        _code: str, _constraints: str, arguments: list[Float32], **_: object
    ) -> Float32:
        return reciprocal(arguments[0], nearest)

    language = SimpleNamespace(
        fma=fma, inline_asm_elementwise=approximate, float32=np.float32, maximum=np.maximum,
        where=lambda condition, a, b: np.where(condition, np.float32(a), np.float32(b)),
    )  # fmt: skip
    names = ("_DOWN", "_UP", "_UNIT", "_LEAST_RECIPROCAL")
    values = {name: np.float32(getattr(elementwise, name).value) for name in names}
    known = values | {"tl": language}
    for called in (
        elementwise.near_reciprocal, elementwise.nearest_reciprocal, elementwise.corrected_quotient,
    ):  # fmt: skip
        known[called.fn.__name__] = FunctionType(called.fn.__code__, known)
    plain = FunctionType(function.fn.__code__, known)

    def quiet(*arguments: object) -> Float32:
        with np.errstate(over="ignore", invalid="ignore"):
            return plain(*arguments)

    return quiet


def reciprocal(t: Float32, nearest: bool) -> Float32:
    """The float32 nearest to 1 / t, or the one on the other side of it."""
    exact = 1.0 / t.astype(np.float64)
    y = exact.astype(np.float32)
    if nearest:
        return y
    return np.where(y < exact, np.nextafter(y, np.float32(1)), np.nextafter(y, np.float32(0)))


@numba.njit(error_model="numpy")
def hard_cases(low, high):
    """Dividends N and divisors t in [low, high) whose quotient lies closest to a tie.

    With the quotient N 2^s / t in [2^23, 2^24), a tie is a half-integer M + 1/2; the distance to it
    is |j| 2^v / (2 t), where N 2^(s + 1) - (2 M + 1) t = j 2^v, v the twos in t. Solved for N,
    modulo the odd part of t, for |j| 2^v up to NEAREST. Returns (N, t, the nearest quotient, s).
    """
    found = []
    for t in range(low, high):
        twos = 0
        while (t >> twos) & 1 == 0:
            twos += 1
        odd = t >> twos
        length = 0
        while 1 << length <= t:
            length += 1
        for s in (length - 1, length):
            inverse = 1
            for _ in range(s + 1 - twos):
                inverse = inverse // 2 if inverse % 2 == 0 else (inverse + odd) // 2
            nearest = NEAREST >> twos
            for j in range(-nearest, nearest + 1):
                if j == 0:
                    continue
                N = j * inverse % odd
                N += ((1 << 23) - N + odd - 1) // odd * odd
                while N < 1 << 24:
                    twice = (N * (1 << (s + 1)) - j * (1 << twos)) // t
                    M = (twice - 1) // 2
                    exact = twice * t == N * (1 << (s + 1)) - j * (1 << twos)
                    if exact and twice & 1 and 1 << 23 <= M < 1 << 24:
                        found.append((N, t, M + 1 if j > 0 else M, s))
                    N += odd
    return np.array(found)


def ranges() -> Iterator[tuple[int, int]]:
    """Runs of divisors up to 2^24, the largest among them: there ties are closest."""
    for start in np.linspace(SMALLEST, UNIT - 2000, 24).astype(int).tolist():
        yield start, start + 1000
    yield UNIT - 1000, UNIT + 1


def check_hard_cases(low: int, high: int) -> int:
    cases = hard_cases(low, high)
    N, t = cases[:, 0].astype(np.float32), cases[:, 1].astype(np.float32)
    expected = np.ldexp(cases[:, 2].astype(np.float64), -cases[:, 3]).astype(np.float32)
    divide = device_function(elementwise.corrected_quotient)
    np.testing.assert_array_equal(divide(N, t, reciprocal(t, True)), expected)
    return len(cases)


@pytest.mark.parametrize("nearest", [True, False])
def test_every_reciprocal_is_corrected(nearest: bool) -> None:
    """A divisor, of all 2^24, for which the Newton step misses the nearest reciprocal."""
    correct = device_function(elementwise.nearest_reciprocal)
    for low in range(1, UNIT + 1, 1 << 20):
        t = np.arange(low, min(low + (1 << 20), UNIT + 1), dtype=np.float32)
        np.testing.assert_array_equal(correct(t, reciprocal(t, nearest)), reciprocal(t, True))


def test_quotients_closest_to_a_tie() -> None:
    """A correction step left out, or one that rounds the wrong way beside a tie."""
    assert sum(check_hard_cases(low, high) for low, high in ranges()) > 100_000


@pytest.mark.slow
def test_quotients_closest_to_a_tie_for_every_divisor() -> None:
    """A divisor, of all that there are, whose quotients are rounded the wrong way."""
    step = 1 << 17
    for low in range(SMALLEST, UNIT, step):
        check_hard_cases(low, min(low + step, UNIT + 1))


def test_hard_cases_catch_a_plain_product() -> None:
    """Cases so easy that the product with the reciprocal passes them too."""
    cases = hard_cases(UNIT - 1000, UNIT)
    N, t = cases[:, 0].astype(np.float32), cases[:, 1].astype(np.float32)
    expected = np.ldexp(cases[:, 2].astype(np.float64), -cases[:, 3]).astype(np.float32)
    assert np.count_nonzero(N * reciprocal(t, True) != expected) > len(cases) // 10


#: How far a quotient by an unrefined reciprocal is off, relative and before its last rounding: the
#: product with a reciprocal off by 2^-23 by at most 1.5 * 2^-23; its remainder, rounded, and that
#: times the reciprocal by 2^-24 and 2^-23 of it.
UNREFINED = 1.5 * 2.0**-23 * 1.5 * 2.0**-23 * 1.01


def bfloat16_cases(off: float) -> np.ndarray:
    """Bfloat16 numbers N and divisors t whose quotient an unrefined reciprocal may round wrongly.

    It shows in bfloat16 only beside a midpoint (2 B + 1) 2^15, in units of the last place of
    float32: at the ties (2 B + 1) 2^16 +- 1, in half units. Those with B < 128 are of subnormal
    numbers, where the last place stays what it is. N = A 2^k then lies within `off`, relative, of a
    product of t and such a tie.
    """
    odd = 2 * np.arange(256, dtype=np.int64) + 1
    ties = np.concatenate([(odd << 16) + 1, (odd << 16) - 1])[None, :]
    A = np.arange(1, 256, 2, dtype=np.int64)[:, None]
    found = []
    for k in range(8, 50):
        N = A << k
        t = (N + ties // 2) // ties
        near = np.abs(N - t * ties) <= off * t * np.maximum(ties, 1 << 24)
        close = (t >= 1) & (t <= UNIT) & near
        row, column = np.nonzero(close)
        found += [(int(A[i, 0]), k, int(t[i, j])) for i, j in zip(row, column, strict=True)]
    return np.array(found, np.int64).reshape(-1, 3)


def test_no_quotient_of_bfloat16_comes_close_to_a_tie_that_shows() -> None:
    """A bfloat16 entry for which the quotient without the Newton step is rounded wrongly."""
    assert len(bfloat16_cases(UNREFINED)) == 0
    assert len(bfloat16_cases(1000 * UNREFINED)) > 0


@pytest.mark.parametrize("nearest", [True, False])
@pytest.mark.parametrize("large", [False, True])
def test_quotients_of_bfloat16(nearest: bool, large: bool) -> None:
    """A quotient of a bfloat16 number that differs from IEEE's once it is rounded to bfloat16."""
    rng = np.random.default_rng(2)
    low = 94 << 7 if large else 1  # from 2^-33 on where the headroom is shared, see below
    a = rng.integers(low, 0x7F80, 1_000_000, dtype=np.uint32) << np.uint32(16)
    a = (a | rng.integers(0, 2, a.size, dtype=np.uint32) << np.uint32(31)).view(np.float32)
    if not large:
        a = a[np.abs(a) < 2.0**100]
    t = np.floor(np.exp2(rng.uniform(0, 24, a.size))).astype(np.float32)
    t[-4:] = [1, UNIT, UNIT - 1, 3]
    up, down = device_function(elementwise.headroom)(np.array(large))
    found = device_function(elementwise.quotient_of_bfloat16, nearest)(a, t, up, down)
    with np.errstate(over="ignore"):
        expected = a / (t / np.float32(UNIT))
        found, expected = oracle.round_bfloat16(found), oracle.round_bfloat16(expected)
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("nearest", [True, False])
def test_whole_range_with_headroom_of_each_entry(nearest: bool) -> None:
    """An overflow before its time, a remainder that underflows, a subnormal rounded twice."""
    rng = np.random.default_rng(0)
    a = rng.integers(1, 0x7F800000, 400_000, dtype=np.uint32).view(np.float32)
    a[:50_000] = rng.integers(1, 1 << 23, 50_000, dtype=np.uint32).view(np.float32)
    a[::2] *= -1
    t = np.floor(np.exp2(rng.uniform(0, 24, a.size))).astype(np.float32)
    t[-4:] = [1, UNIT, UNIT - 1, 3]
    up, down = device_function(elementwise.headroom)(np.abs(a) >= 2.0**100)
    found = device_function(elementwise.quotient, nearest)(a, t, up, down)
    with np.errstate(over="ignore"):
        expected = a / (t / np.float32(UNIT))
    assert np.isinf(expected).any()
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_headroom_of_a_matrix_of_large_entries() -> None:
    """The shared headroom of magnitudes losing bits of an entry that the law can keep."""
    rng = np.random.default_rng(1)
    # With the largest over 2^64, x = |a| * scale underflows below 2^-64: no law keeps less.
    exponent = rng.uniform(-64, 127, 200_000)
    a = np.exp2(exponent).astype(np.float32)
    t = np.floor(np.exp2(rng.uniform(0, 24, a.size))).astype(np.float32)
    up, down = device_function(elementwise.headroom)(np.array(True))
    found = device_function(elementwise.quotient)(a, t, up, down)
    with np.errstate(over="ignore"):
        expected = a / (t / np.float32(UNIT))
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))
    assert math.isclose(float(up * down), UNIT)
