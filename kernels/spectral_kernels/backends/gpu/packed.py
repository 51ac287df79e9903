"""A sparse matrix packed on the GPU, as bits or CSR, and products restricted to a packed mask.

Arrays are torch tensors on one CUDA device (on the CPU under Triton's interpreter). The oracles in
`reference.packed` say what is returned. Only `compressed_rows` without a count waits for the
device.
"""

import math

import torch
import triton

from spectral_kernels.backends.gpu.plan import (
    LOW_RANK_REGISTERS,
    ceil_div,
    device_of,
    has_nvidia,
    padded_factors,
    vector_unit,
)
from spectral_kernels.backends.gpu.triton import packing
from spectral_kernels.backends.protocol import Matrix

_WORDS, _TILE, _COLUMNS = 64, 1024, 2048
#: The tile of a masked product.
_ROWS, _SIDE, _DEPTH = 64, 64, 16


def pack_bits(A: torch.Tensor) -> torch.Tensor:
    """Bits of the entries of A (m, n) that are not zero: uint8 (ceil(m n / 8),)."""
    matrix = _matrix(A, "A")
    words = torch.empty(ceil_div(matrix.size, 32), dtype=torch.int32, device=A.device)
    with device_of(matrix):
        packing.pack_bits[(ceil_div(words.numel(), _WORDS),)](
            matrix.storage, words, *_units(matrix), WORDS=_WORDS
        )
    return words.view(torch.uint8)[: ceil_div(matrix.size, 8)]


def keep_bits(A: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """A (m, n) where its bit is set, else 0."""
    matrix = _matrix(A, "A")
    _check_bits(bits, matrix)
    out = torch.empty_like(matrix.storage)
    with device_of(matrix):
        packing.keep_bits[(ceil_div(matrix.size, _TILE),)](
            matrix.storage, bits, out, *_units(matrix), TILE=_TILE
        )
    return out.view(A.shape)


def compressed_rows(
    A: torch.Tensor, nnz: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where rows start (m + 1,), columns (nnz,) and values (nnz,): what `torch.sparse_csr_tensor`
    and cupyx.scipy.sparse.csr_matrix take. Indices have 32 bits where these do.

    nnz: the number of nonzeros, where it is known. If not, they are counted, which waits for the
    device. Where it is too small, the last entries are left out.

    Raises:
        ValueError: a count below 0 or above m n.
    """
    matrix = _matrix(A, "A")
    m, n, device = matrix.m, matrix.n, A.device
    if nnz is not None and not 0 <= nnz <= matrix.size:
        raise ValueError(f"nnz: expected 0 to {matrix.size}; got {nnz}")
    starts = torch.zeros(m + 1, dtype=torch.int64, device=device)
    columns, unit = min(triton.next_power_of_2(n), _COLUMNS), vector_unit(matrix)
    with device_of(matrix):
        packing.count_rows[(m,)](matrix.storage, starts[1:], n // unit, unit, COLUMNS=columns)
        torch.cumsum(starts, 0, out=starts)
        found = int(starts[-1]) if nnz is None else nnz
        starts.clamp_(max=found)
        index = torch.int32 if max(found, n) < 2**31 else torch.int64
        indices = torch.zeros(found, dtype=index, device=device)
        values = torch.zeros(found, dtype=A.dtype, device=device)
        packing.fill_rows[(m,)](
            matrix.storage, starts, indices, values, n // unit, unit, COLUMNS=columns
        )
    return starts.to(index), indices, values


def masked_product(
    left: torch.Tensor,
    right: torch.Tensor,
    bits: torch.Tensor,
    X: torch.Tensor | None = None,
    ridge: float = 0.0,
) -> torch.Tensor:
    """left (m, r) @ right (r, n) + ridge X on the mask, 0 elsewhere; all float32.

    The gradient of a refit on its mask in one pass. Of the spectral one, with X on the mask,

        U (U^T X) + (X V) V^T + ridge X = [U, X V] [U^T X; V^T] + ridge X

    is `masked_product(cat([U, X V], 1), cat([U^T X, V^T]), bits, X, ridge)`; of least squares,
    X H + ridge X, it is `masked_product(X, H, bits, X, ridge)`.
    """
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
        raise ValueError(
            "right: expected (r, n) for left (m, r); "
            f"got {tuple(right.shape)} for {tuple(left.shape)}"
        )
    m, n = left.shape[0], right.shape[1]
    for name, factor in (("left", left), ("right", right), ("X", X)):
        if factor is not None and factor.dtype != torch.float32:
            raise TypeError(f"{name}: expected float32; got {factor.dtype}")
    if X is not None and X.shape != (m, n):
        raise ValueError(f"X: expected {(m, n)}; got {tuple(X.shape)}")
    out = torch.empty((m, n), dtype=torch.float32, device=left.device)
    matrix = _matrix(out, "left @ right")
    _check_bits(bits, matrix)
    some_left, some_right, depths = padded_factors(left.contiguous(), right.contiguous(), _DEPTH)
    unit = vector_unit(matrix)
    registers = {"maxnreg": LOW_RANK_REGISTERS} if has_nvidia() else {}
    strip = _ROWS * max(1, ceil_div(ceil_div(m, _ROWS), 65535))
    with device_of(matrix):
        packing.masked_product[(ceil_div(n, _SIDE), ceil_div(m, strip))](
            None if X is None else X.contiguous(), bits, out, m, n // unit, strip,
            some_left, some_right, ridge, UNIT=unit, ROWS=_ROWS, COLUMNS=_SIDE, DEPTH=_DEPTH,
            DEPTHS=depths, PRECISION="tf32x3" if has_nvidia() else "ieee",
            num_warps=4, num_stages=2, **registers,
        )  # fmt: skip
    return out


def _matrix(A: torch.Tensor, name: str) -> Matrix:
    if A.ndim != 2 or A.numel() == 0:
        raise ValueError(f"{name}: expected (m, n), neither of them 0; got {tuple(A.shape)}")
    dtype = str(A.dtype).removeprefix("torch.")
    return Matrix(A.detach().contiguous().view(-1), A.shape[0], A.shape[1], dtype)


def _units(matrix: Matrix) -> tuple[int, int]:
    """The entries as units, and how many are a unit."""
    unit = math.gcd(matrix.size, 16 // matrix.storage.element_size())
    return matrix.size // unit, unit


def _check_bits(bits: torch.Tensor, matrix: Matrix) -> None:
    expected = ceil_div(matrix.size, 8)
    if bits.dtype != torch.uint8 or bits.shape != (expected,):
        raise ValueError(
            f"bits: expected uint8 ({expected},) for {matrix.m} x {matrix.n}; "
            f"got {str(bits.dtype).removeprefix('torch.')} {tuple(bits.shape)}"
        )
