"""The Triton kernels on a GPU, or under the interpreter on CPU tensors, against the oracle."""

import numpy as np
import pytest
import torch
from spectral_kernels.product import Packed, oracle
from spectral_kernels.product.gpu import operator, packing

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SHAPES = [(1, 1), (7, 13), (4, 2500)]


def sparse(shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """Half zeros, an empty row where there are several, -0 and NaN among the entries."""
    rng = np.random.default_rng(shape[1])
    A = np.where(rng.random(shape) < 0.5, rng.standard_normal(shape), 0.0)
    if shape[0] > 1:
        A[1] = 0.0
        A[0, :3] = (-0.0, np.nan, 6e-8)
    return torch.tensor(A).to(dtype).to(DEVICE)


def bits_of(tensor: torch.Tensor) -> np.ndarray:
    size = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.cpu().view(size).numpy()


def packed_of(A: torch.Tensor) -> Packed:
    return Packed(*packing.pack(A), (A.shape[0], A.shape[1]))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packing(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Bits in another order, a count lost between tiles, -0 dropped, a tail written over."""
    A = sparse(shape, dtype)
    packed = packed_of(A)
    words = bits_of(A).view(f"u{A.element_size()}")
    values, bits, offsets = oracle.pack(words)
    np.testing.assert_array_equal(bits_of(packed.values).view(words.dtype), values)
    np.testing.assert_array_equal(packed.bitmask.cpu().numpy(), bits)
    np.testing.assert_array_equal(packed.row_offsets.cpu().numpy(), offsets)
    assert packed.row_offsets.dtype == torch.int32
    back = packing.unpack(packed.values, packed.bitmask, packed.row_offsets, shape)
    np.testing.assert_array_equal(bits_of(back), bits_of(A))


@pytest.mark.parametrize("sides", [1, 3, 16, 17])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_product(dtype: torch.dtype, sides: int) -> None:
    """A right-hand side or tile left out, sums in 16 bits, a value of the next row."""
    A, wide = sparse((4, 2500), dtype).nan_to_num(1.0), dtype == torch.float64
    X = torch.randn(sides, 2500, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    run = operator.Runner(packed_of(A))
    found = run(X.double() if wide else X)  # whose sums the interpreter does not cut to 16 bits
    exact = X.double() @ A.double().T
    bound = 2500 * 2.0 ** (-53 if wide else -24) * (X.double().abs() @ A.double().abs().T)
    assert ((found.double() - exact).abs() <= bound).all()
    assert run(X.to(dtype)).dtype == dtype


def test_small_integers_are_exact() -> None:
    """A column's x given to its neighbour, which a bound on rounding may hide."""
    rng = np.random.default_rng(0)
    A = np.where(rng.random((9, 1000)) < 0.3, rng.integers(-4, 5, (9, 1000)), 0.0)
    X = rng.integers(-4, 5, (5, 1000)).astype(np.float32)
    A = A.astype(np.float32)
    found = operator.Runner(packed_of(torch.tensor(A, device=DEVICE)))(
        torch.tensor(X, device=DEVICE)
    )
    np.testing.assert_array_equal(found.cpu().numpy(), oracle.product(A, X))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter's, of inf * 0
def test_what_is_not_stored_is_not_multiplied() -> None:
    """An infinity in x that becomes NaN in rows without an entry there."""
    A = torch.zeros(2, 100, device=DEVICE)
    A[0, 3], A[1, 50] = 2.0, 3.0
    X = torch.ones(1, 100, device=DEVICE)
    X[0, 50] = torch.inf
    assert operator.Runner(packed_of(A))(X).tolist() == [[2.0, float("inf")]]


def test_damage_is_seen() -> None:
    """Offsets or bits of a damaged file that let a kernel read beyond the values."""
    A = sparse((7, 13), torch.float32)
    packed = packed_of(A)
    bits, offsets, nnz = packed.bitmask, packed.row_offsets, packed.nnz
    assert packing.first_wrong_row(bits, offsets, nnz, 13) == -1
    assert packing.first_wrong_row(bits, offsets, nnz - 1, 13) == 6
    assert packing.first_wrong_row(bits, offsets + 1, nnz + 1, 13) == 0
    over = bits.clone()
    over[3, 1] |= 0x80
    assert packing.first_wrong_row(over, offsets, nnz, 13) == 3
