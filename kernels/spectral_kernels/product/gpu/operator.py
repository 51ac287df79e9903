"""What an operator on a GPU does in a call: the kernel for few right-hand sides, else the BLAS."""

import torch
import triton

from spectral_kernels.backends.gpu.plan import ceil_div, device_of
from spectral_kernels.backends.protocol import Matrix
from spectral_kernels.product.gpu import kernels, packing
from spectral_kernels.product.packed import Packed

#: Right-hand sides up to which the kernel serves; beyond, the dense matrix is made for the call.
MOST_SIDES = 16


class Runner:
    """A function of x (..., n) that gives x S^T (..., m) in x's dtype."""

    def __init__(self, packed: Packed) -> None:
        self._packed = packed
        self._double = packed.dtype == "float64"

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x S^T; does not wait for the device."""
        packed, (m, n) = self._packed, self._packed.shape
        rows = x.detach().reshape(-1, n)
        sides = rows.shape[0]
        sums = torch.float64 if self._double else torch.float32
        if sides > MOST_SIDES:
            dense = packing.unpack(packed.values, packed.bitmask, packed.row_offsets, (m, n))
            same = dense.dtype == rows.dtype
            found = rows @ dense.T if same else rows.to(sums) @ dense.to(sums).T
            return found.to(x.dtype).view(*x.shape[:-1], m)
        y = torch.empty((sides, m), dtype=x.dtype, device=x.device)
        if sides:
            block = triton.next_power_of_2(sides)
            with device_of(Matrix(y, sides, m, str(y.dtype))):
                kernels.product[(m,)](
                    packed.values, packed.bitmask, packed.row_offsets, rows.contiguous(), y,
                    m, n, ceil_div(n, 8), sides, SIDES=block, COLUMNS=packing.tile(n, block),
                    DOUBLE=self._double, num_warps=4,
                )  # fmt: skip
        return y.view(*x.shape[:-1], m)
