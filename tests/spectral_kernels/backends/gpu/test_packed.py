"""Packing on the GPU, and products on a packed mask, against the NumPy oracles."""

import numpy as np
import pytest
import torch
from spectral_kernels.backends.gpu import packed
from spectral_kernels.reference import packed as oracle

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(1, 1), (1, 37), (7, 64), (33, 5), (3, 2500)]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def sparse(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A matrix with a third of its entries left, zeros of both signs, a NaN and a subnormal."""
    rng = np.random.default_rng(sum(shape))
    values = np.where(rng.random(shape) < 1 / 3, rng.standard_normal(shape), 0.0)
    values.flat[::4] *= -1.0
    values.flat[-1] = {torch.float16: 6e-8, torch.float64: 5e-324}.get(dtype, 1e-40)
    if values.size > 40:
        values.flat[11] = np.nan
    return torch.tensor(values).to(dtype).to(DEVICE)


def bits_of(tensor: torch.Tensor) -> np.ndarray:
    size = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.cpu().view(size).numpy()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pack_bits(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Bits in another order, a tail cut or too long, -0 or a subnormal taken for the other."""
    A = sparse(shape, dtype)
    found = packed.pack_bits(A)
    expected = oracle.pack_bits(A.cpu().double().numpy())
    np.testing.assert_array_equal(found.cpu().numpy(), expected)
    assert found.dtype == torch.uint8


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_keep_bits(dtype: torch.dtype) -> None:
    """A neighbour's bit, an entry that is changed, a NaN that comes through a cleared bit."""
    A = sparse((9, 141), dtype)
    mask = np.random.default_rng(0).random((9, 141)) < 0.5
    bits = torch.tensor(oracle.pack_bits(mask.astype(float)), device=DEVICE)
    np.testing.assert_array_equal(oracle.unpack_bits(bits.cpu().numpy(), (9, 141)), mask)
    found = packed.keep_bits(A, bits)
    np.testing.assert_array_equal(bits_of(found), np.where(mask, bits_of(A), 0))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_compressed_rows(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """A running place lost between blocks or rows, entries out of order, indices of 64 bits."""
    A = sparse(shape, dtype)
    starts, columns, values = packed.compressed_rows(A)
    expected = oracle.compressed_rows(A.cpu().double().numpy())
    for found, wanted in zip((starts, columns, values.double()), expected, strict=True):
        np.testing.assert_array_equal(found.cpu().numpy(), wanted)
    assert values.dtype == dtype
    assert starts.dtype == columns.dtype == torch.int32


def test_compressed_rows_with_a_count() -> None:
    """Writes beyond the room that was asked for, or a count that is looked up after all."""
    A = sparse((20, 30))
    _, columns, values = packed.compressed_rows(A)
    nnz = values.numel()
    assert packed.compressed_rows(A, nnz)[2].numel() == nnz
    starts, fewer, _ = packed.compressed_rows(A, nnz - 7)
    assert torch.equal(fewer, columns[:-7])
    assert int(starts[-1]) == nnz - 7
    with pytest.raises(ValueError, match="nnz: expected 0 to 600; got 601"):
        packed.compressed_rows(A, 601)


@pytest.mark.parametrize("rank", [5, 32])
@pytest.mark.parametrize("shape", [(35, 70), (64, 64)], ids=str)
def test_masked_product(shape: tuple[int, int], rank: int) -> None:
    """A factor's row or column taken from another place, a mask shifted, X left out."""
    (m, n), rng = shape, np.random.default_rng(rank)
    left, right, X = (
        rng.integers(-3, 4, size).astype(np.float32) for size in ((m, rank), (rank, n), (m, n))
    )
    bits = oracle.pack_bits(rng.random((m, n)) - 0.5 > 0)
    tensors = [torch.tensor(array, device=DEVICE) for array in (left, right, bits, X)]
    for some, ridge in ((None, 0.0), (X, 0.5)):
        found = packed.masked_product(*tensors[:3], None if some is None else tensors[3], ridge)
        expected = oracle.masked_product(left, right, bits, some, ridge)
        # Small integers multiply exactly in any order.
        np.testing.assert_array_equal(found.cpu().numpy(), expected)


def test_gradient_of_the_spectral_refit() -> None:
    """Factors in an order that makes another matrix of them."""
    rng = np.random.default_rng(3)
    U, V = (np.linalg.qr(rng.standard_normal((size, 4)))[0] for size in (40, 50))
    mask = rng.random((40, 50)) < 0.3
    X = np.where(mask, rng.standard_normal((40, 50)), 0.0)
    expected = np.where(mask, U @ (U.T @ X) + (X @ V) @ V.T + 0.3 * X, 0.0)
    U, V, X = (torch.tensor(array, dtype=torch.float32, device=DEVICE) for array in (U, V, X))
    bits = torch.tensor(oracle.pack_bits(mask.astype(float)), device=DEVICE)
    left, right = torch.cat([U, X @ V], 1), torch.cat([U.T @ X, V.T])
    found = packed.masked_product(left, right, bits, X, 0.3).cpu().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert not found[~mask].any()


def test_bad_input() -> None:
    """A mask of another matrix, or factors of another, read beyond their ends."""
    A = sparse((4, 10))
    with pytest.raises(ValueError, match=r"bits: expected uint8 \(5,\) for 4 x 10; got uint8 \(4,"):
        packed.keep_bits(A, torch.zeros(4, dtype=torch.uint8, device=DEVICE))
    with pytest.raises(ValueError, match=r"right: expected \(r, n\)"):
        packed.masked_product(A, A, torch.zeros(5, dtype=torch.uint8))
    with pytest.raises(TypeError, match=r"left: expected float32; got torch\.float64"):
        packed.masked_product(A.double(), A.T, torch.zeros(2, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"X: expected \(4, 4\)"):
        packed.masked_product(A, A.T, torch.zeros(2, dtype=torch.uint8, device=DEVICE), A)
    with pytest.raises(ValueError, match=r"A: expected \(m, n\)"):
        packed.pack_bits(A[0])
