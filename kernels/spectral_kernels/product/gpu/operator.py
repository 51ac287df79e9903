"""What an operator on a GPU does in a call: the kernel for few sides, else the matrix units."""

from typing import Any

import torch
import triton

from spectral_kernels.backends.gpu.plan import ceil_div, device_of
from spectral_kernels.backends.protocol import Matrix
from spectral_kernels.product.gpu import kernels, packing, semi_structured
from spectral_kernels.product.packed import Packed

#: Right-hand sides up to which the kernel serves; beyond, the dense matrix is made for the call, or
#: a 2:4 matrix is multiplied by as one. Sums of float64 take twice the registers.
MOST_SIDES, MOST_SIDES_DOUBLE = 16, 4


class Runner:
    """A function of x (..., n) that gives x S^T (..., m) in x's dtype."""

    def __init__(self, packed: Packed) -> None:
        self._packed = packed
        self._double = packed.dtype == "float64"
        self._most = MOST_SIDES_DOUBLE if self._double else MOST_SIDES
        device = packed.values.device
        self._is_two_of_four = semi_structured.has_units(device) and semi_structured.fits(packed)
        #: Made when it is first multiplied by: generating token by token needs none.
        self._semi_structured: Any = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x S^T; does not wait for the device, but for the first product with a 2:4 matrix."""
        m, n = self._packed.shape
        rows = x.detach().reshape(-1, n)
        if rows.shape[0] <= self._most:
            found = self._by_kernel(rows)
        elif self._is_two_of_four and rows.dtype == self._packed.values.dtype:
            if self._semi_structured is None:
                self._semi_structured = semi_structured.tensor_of(self._packed)
            found = torch.nn.functional.linear(rows, self._semi_structured)
        else:
            found = self._by_dense(rows)
        return found.view(*x.shape[:-1], m)

    def _by_kernel(self, rows: torch.Tensor) -> torch.Tensor:
        packed, (m, n), sides = self._packed, self._packed.shape, rows.shape[0]
        y = torch.empty((sides, m), dtype=rows.dtype, device=rows.device)
        if sides:
            if n % 8:  # the kernel reads x eight at a time
                rows = torch.nn.functional.pad(rows, (0, -n % 8))
            block = triton.next_power_of_2(sides)
            with device_of(Matrix(y, sides, m, str(y.dtype))):
                kernels.product[(m,)](
                    packed.values, packed.bitmask, packed.row_offsets, rows.contiguous(), y,
                    m, ceil_div(n, 8), sides, SIDES=block, BYTES=packing.tile(n, block),
                    DOUBLE=self._double, num_warps=packing.WARPS,
                )  # fmt: skip
        return y

    def _by_dense(self, rows: torch.Tensor) -> torch.Tensor:
        packed = self._packed
        dense = packing.unpack(packed.values, packed.bitmask, packed.row_offsets, packed.shape)
        if dense.dtype == rows.dtype:
            return rows @ dense.T
        sums = torch.float64 if self._double else torch.float32
        return (rows.to(sums) @ dense.to(sums).T).to(rows.dtype)
