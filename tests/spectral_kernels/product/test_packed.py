"""Packing and unpacking against the oracle, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spectral_kernels.product import Packed, oracle, pack, prepare, unpack

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
SPECIAL = [-0.0, np.nan, -np.nan, np.inf, 6e-8]


def bits_of(tensor: torch.Tensor) -> np.ndarray:
    return tensor.view(INTEGERS[tensor.element_size()]).numpy()


@st.composite
def matrices(draw: st.DrawFn) -> torch.Tensor:
    """Any shape up to 40 x 150 and any share of zeros, with empty and full rows among them."""
    m, n = draw(st.integers(1, 40)), draw(st.integers(1, 150))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    keep = rng.choice([0.0, 0.1, 0.5, 1.0], (m, 1)) if draw(st.booleans()) else rng.random()
    A = np.where(rng.random((m, n)) < keep, rng.standard_normal((m, n)), 0.0)
    for value in draw(st.lists(st.sampled_from(SPECIAL), max_size=5)):
        A.flat[rng.integers(A.size)] = value
    return torch.tensor(A).to(draw(st.sampled_from(DTYPES)))


@given(matrices())
@settings(deadline=None, max_examples=150)
def test_round_trip(A: torch.Tensor) -> None:
    """An entry lost or moved, -0 taken for a zero, a NaN's bits changed, a row's end cut."""
    packed = pack(A)
    words = bits_of(A).view(f"u{A.element_size()}")
    stored = words != 0
    np.testing.assert_array_equal(bits_of(packed.values).view(words.dtype), words[stored])
    bitmask = np.packbits(stored, axis=1, bitorder="little")
    np.testing.assert_array_equal(packed.bitmask.numpy(), bitmask)
    counts = stored.sum(1)
    np.testing.assert_array_equal(packed.row_offsets.numpy(), counts.cumsum() - counts)
    assert (packed.shape, packed.nnz) == (tuple(A.shape), int(stored.sum()))
    back = unpack(packed)
    assert back.dtype == A.dtype
    np.testing.assert_array_equal(bits_of(back), bits_of(A))


@pytest.mark.parametrize("keep", [0.0, 0.3, 1.0])
def test_large_round_trip(keep: float) -> None:
    """Threads that write beyond their rows: whole words of the next one are overwritten."""
    rng = np.random.default_rng(1)
    A = np.where(rng.random((1500, 777)) < keep, rng.standard_normal((1500, 777)), 0)
    A = A.astype(np.float32)
    packed = pack(A)
    for found, expected in zip(
        (packed.values, packed.bitmask, packed.row_offsets), oracle.pack(A), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype
    np.testing.assert_array_equal(unpack(packed), A)
    np.testing.assert_array_equal(oracle.unpack(packed.values, packed.bitmask, A.shape), A)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_layouts(dtype: type) -> None:
    """A transposed, read-only or shifted array read in the order of its memory."""
    rng = np.random.default_rng(0)
    base = np.where(rng.random((30, 20)) < 0.5, rng.standard_normal((30, 20)), 0).astype(dtype)
    frozen = base.copy()
    frozen.flags.writeable = False
    for A in (base.T, base[:, 1:], base[::2], frozen):
        packed = pack(A)
        assert isinstance(packed.values, np.ndarray)
        np.testing.assert_array_equal(unpack(packed), A)


def test_refusals_of_pack() -> None:
    """A tensor of other dimensions or dtype packed as if it were a matrix of floats."""
    with pytest.raises(ValueError, match=r"weight: expected \(m, n\).*got shape \(2, 3, 4\)"):
        pack(np.zeros((2, 3, 4), np.float32))
    with pytest.raises(ValueError, match=r"neither of them 0; got shape \(0, 4\)"):
        pack(torch.zeros(0, 4))
    with pytest.raises(TypeError, match=r"weight: expected one of float16.*got int64"):
        pack(np.zeros((2, 3), np.int64))
    with pytest.raises(TypeError, match="weight: expected a NumPy array or torch tensor; got"):
        pack([[1.0]])


@pytest.mark.parametrize("use", [unpack, prepare])
def test_arrays_that_do_not_belong_together(use: object) -> None:
    """Kernels that read beyond the values, or write beyond a row, on a damaged file."""
    good = pack(np.array([[0, 1, 2, 0, 0], [0, 0, 0, 0, 3], [4, 5, 6, 7, 8.0]], np.float32))

    def refused(match: str, error: type[Exception] = ValueError, **changes: object) -> None:
        with pytest.raises(error, match=match):
            use(replace(good, **changes))  # type: ignore[operator]

    refused("the first row where they do not is 2", values=good.values[:-1])
    refused("the first row where they do not is 2", values=np.append(good.values, good.values[:1]))
    refused("the first row where they do not is 0", bitmask=good.bitmask | np.uint8(32))
    refused("the first row where they do not is 0", bitmask=good.bitmask & np.uint8(253))
    refused("the first row where they do not is 0", row_offsets=good.row_offsets + 1)
    refused(
        "the first row where they do not is 0",
        row_offsets=good.row_offsets.astype(np.int64) - 2**62,
    )
    refused(r"bitmask: expected shape \(3, 1\); got \(3, 2\)", bitmask=np.zeros((3, 2), np.uint8))
    refused(r"row_offsets: expected shape \(3,\); got \(4,\)", row_offsets=np.zeros(4, np.int64))
    refused("values: expected shape", values=good.values[:, None])
    refused("bitmask: expected uint8; got int8", TypeError, bitmask=good.bitmask.view(np.int8))
    refused("values: expected one of float16", TypeError, values=good.values.view(np.int32))
    refused("bitmask: expected <class 'numpy", TypeError, bitmask=torch.tensor(good.bitmask))
    assert isinstance(good, Packed)
