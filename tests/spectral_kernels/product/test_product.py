"""The CPU's products: every way the oracle's bits, whatever the threads, the shape, the memory."""

import sys

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spectral_kernels.product import pack, prepare
from spectral_kernels.product.cpu import operator as cpu

from tests.support.processes import run_python
from tests.support.products import DTYPES, expected_of, same, sparse

UNIT = {torch.float64: 2.0**-53}


def all_ways(dtype: torch.dtype) -> list[str]:
    """Those that this processor has."""
    return cpu.ways(str(dtype).removeprefix("torch."))


@given(
    st.integers(1, 12), st.integers(1, 1300), st.sampled_from([0.0, 0.05, 0.3, 0.5, 1.0]),
    st.integers(1, 16), st.sampled_from(DTYPES), st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_every_way_gives_the_bits_of_the_oracle(
    m: int, n: int, keep: float, sides: int, dtype: torch.dtype, seed: int
) -> None:
    """A value at another column, a tail of a row, of a word or of right-hand sides left out, sums
    in another order, a product rounded before it is added.
    """
    A, X = sparse((m, n), keep, dtype, seed), sparse((sides, n), 0.9, dtype, seed + 1)
    if dtype == torch.float64:  # whose oracle is slow
        A, X = A[:3, :150], X[:2, :150]
    packed, expected = pack(A), expected_of(A, X)
    for way in all_ways(dtype):
        same(cpu.Runner(packed, way)(X), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_bound_of_the_sum(dtype: torch.dtype) -> None:
    """Sums in the values' own 16 bits, or an oracle that is wrong itself."""
    A, X = sparse((64, 3000), 0.4, dtype), sparse((5, 3000), 1.0, dtype, 1).double()
    found = prepare(pack(A))(X)
    exact = X @ A.double().T
    unit = UNIT.get(dtype, 2.0**-24)
    terms = 3000 // 4 + 2  # in a sum, at most, and those of the sums
    # X itself is rounded to float32 first.
    bound = (terms + 1) * unit * (X.abs() @ A.double().abs().T)
    assert ((found - exact).abs() <= bound).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("keep", [0.05, 0.3])
@pytest.mark.parametrize("sides", [1, 3, 13])
def test_threads_give_the_same_bits(dtype: torch.dtype, keep: float, sides: int) -> None:
    """Rows shared between threads, a row handed out twice or not at all."""
    A, X = sparse((1111, 1000), keep, dtype), sparse((sides, 1000), 1.0, dtype, 1)
    run, allowed = cpu.Runner(pack(A)), numba.get_num_threads()
    many = run(X)
    numba.set_num_threads(1)
    try:
        one = run(X)
    finally:
        numba.set_num_threads(allowed)
    same(many, one)


@pytest.mark.parametrize("sides", [1, 4])
def test_right_hand_sides_do_not_touch_each_other(sides: int) -> None:
    """One more right-hand side that changes the bits of the others where the order is the same."""
    for keep in (0.05, 0.3):
        A, X = sparse((50, 1000), keep, torch.float32), sparse((40, 1000), 1.0, torch.float32, 1)
        run = cpu.Runner(pack(A))
        most = 40 if sides == 4 else 3
        for more in range(sides, most + 1):
            same(run(X[:more])[:sides], run(X[:sides]))


@pytest.mark.parametrize("way", [cpu.PLAIN, cpu.AVX2, cpu.AVX512])
def test_what_is_not_stored_is_not_multiplied(way: str) -> None:
    """An infinity in x that becomes NaN in rows without an entry there; NaN hidden from others."""
    if way not in all_ways(torch.float32):
        pytest.skip(f"this processor has no {way}")
    for full in (0, 60):  # stored values, for the order of columns and that of stored values
        A = torch.zeros(3, 100)
        A[0, 3], A[1, 50], A[2, 3] = 2.0, 3.0, torch.nan
        A[:, 100 - full :] = 1.0
        A[:, 50:51] = torch.tensor([[0.0], [3.0], [0.0]])
        X = torch.ones(100)
        X[50] = torch.inf
        X[51:] = 0.0
        for sides in (1, 2, 5, 20):
            found = cpu.Runner(pack(A), way)(X.expand(sides, -1))
            expected = torch.tensor([2.0 + max(0, full - 50), torch.inf, torch.nan])
            torch.testing.assert_close(found, expected.expand(sides, -1), equal_nan=True)


def test_minus_zero() -> None:
    """A stored -0 that makes a sum -0 in one way and 0 in another."""
    A = torch.tensor([[-0.0, 0.0], [1.0, -1.0]])
    for way in all_ways(torch.float32):
        found = cpu.Runner(pack(A), way)(torch.tensor([[1.0, 1.0], [-1e-45, 0.0]]))
        assert not torch.signbit(found[:, 0]).any()


def test_many_right_hand_sides() -> None:
    """A decoded tile put at other rows, or its padding multiplied."""
    for dtype in (torch.bfloat16, torch.float32):
        A, X = sparse((1500, 777), 0.3, dtype), sparse((33, 777), 1.0, dtype, 1)
        found = cpu.Runner(pack(A))(X).double()
        exact = X.double() @ A.double().T
        bound = 777 * 2.0**-24 * (X.double().abs() @ A.double().abs().T) + exact.abs() * 2.0**-8
        assert ((found - exact).abs() <= bound).all()


def test_kinds_and_dimensions() -> None:
    """Leading dimensions lost, another kind or dtype returned, y of a NumPy x a tensor."""
    A = sparse((6, 40), 0.5, torch.float32)
    run, plain = prepare(pack(A)), prepare(pack(A.numpy()))
    X = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(0))
    found = run(X)
    assert found.shape == (2, 3, 6)
    np.testing.assert_array_equal(plain(X.numpy()), found.numpy())
    assert plain(X.numpy()[0, 0].astype(np.float16)).dtype == np.float16
    same(run(X.transpose(0, 1)), found.transpose(0, 1).contiguous())
    assert run(X.bfloat16()).dtype == torch.bfloat16
    assert run(X[:0]).shape == (0, 3, 6)
    with pytest.raises(ValueError, match=r"x: expected \(\.\.\., 40\); got \(6,\)"):
        run(torch.zeros(6))
    with pytest.raises(TypeError, match=r"x: expected <class 'torch\.Tensor'>, as what"):
        run(np.zeros(40, np.float32))
    with pytest.raises(TypeError, match="x: expected one of float16"):
        run(torch.zeros(40, dtype=torch.int64))


@pytest.mark.parametrize("given", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_short_way_of_a_call(dtype: torch.dtype, given: torch.dtype) -> None:
    """x read by its address as another dtype, from another place, or of another number of rows."""
    run = cpu.Runner(pack(sparse((7, 90), 0.4, dtype)))
    X = sparse((4, 3, 90), 1.0, given, 1)
    for x in (X, X[2], X[1, 1], X[:0], X[1:, :1].contiguous()):
        found = run.quick(x)
        assert found is not None
        same(found, run(x))
    X[1, 2, 5] = torch.inf
    same(run.quick(X), run(X))
    for x in (X[:, 1], X.transpose(0, 1), X.clone().requires_grad_(), X[..., :9], X.numpy):
        assert run.quick(x) is None


#: The values end where the page after them may not be read.
GUARDED = """
import ctypes, mmap
import numpy as np
import torch
from dataclasses import replace
from spectral_kernels.product import pack, unpack
from spectral_kernels.product.cpu.operator import Runner, ways
page = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)
for dtype in (torch.bfloat16, torch.float16, torch.float32):
    room = mmap.mmap(-1, 64 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(room))
    assert libc.mprotect(ctypes.c_void_p(start + 63 * page), page, 0) == 0
    rng = np.random.default_rng(0)
    for keep in (0.02, 0.5, 1.0):
        A = np.where(rng.random((20, 130)) < keep, rng.standard_normal((20, 130)), 0)
        A[-3:] = 0
        packed = pack(torch.tensor(A).to(dtype))
        size = packed.nnz * packed.values.element_size()
        bytes_ = np.frombuffer(room, np.uint8, size, 63 * page - size)
        values = torch.from_numpy(bytes_).view(dtype)
        values.copy_(packed.values)
        guarded = replace(packed, values=values)
        assert torch.equal(unpack(guarded), torch.tensor(A).to(dtype))
        for way in ways(str(dtype).removeprefix("torch.")):
            for sides in (1, 2, 4, 8, 20):
                x = torch.ones(sides, 130)
                assert torch.equal(Runner(guarded, way)(x), Runner(packed, way)(x))
print("whole")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="protects a page as Linux does")
def test_nothing_is_read_beyond_the_values() -> None:
    """A vector load past the last value: a crash wherever the next page is not there."""
    assert run_python("-c", GUARDED).strip() == "whole"
