"""Packing on a GPU with torch's own operations, unpacking with a kernel."""

import torch
import triton

from spectral_kernels.backends.gpu.plan import ceil_div, device_of
from spectral_kernels.backends.protocol import Matrix
from spectral_kernels.product.gpu import kernels

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
#: Warps of a program, and bytes of bits of a tile: what they add up among threads is the same for
#: one byte a thread and for four.
WARPS, LEAST_BYTES, MOST_BYTES = 4, 128, 512


def pack(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values (nnz,), bitmask uint8 (m, ceil(n / 8)), row offsets (m,); waits for the device."""
    weight = weight.detach().contiguous()
    stored = weight.view(_INTEGERS[weight.element_size()]) != 0
    counts = stored.sum(1)
    m, n = weight.shape
    padded = torch.nn.functional.pad(stored, (0, -n % 8)).view(m, -1, 8)
    powers = torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8, device=weight.device)
    bits = (padded * powers).sum(2, dtype=torch.uint8)
    values, offsets = weight[stored], counts.cumsum(0) - counts
    return values, bits, offsets.to(torch.int32 if values.numel() < 2**31 else torch.int64)


def unpack(
    values: torch.Tensor, bits: torch.Tensor, offsets: torch.Tensor, shape: tuple[int, int]
) -> torch.Tensor:
    """The dense matrix."""
    m, n = shape
    out = torch.empty(shape, dtype=values.dtype, device=values.device)
    with device_of(Matrix(out, m, n, str(values.dtype))):
        kernels.unpack[(m,)](
            values, bits, offsets, out, n, ceil_div(n, 8), BYTES=tile(n), num_warps=WARPS
        )
    return out


def tile(n: int, sides: int = 1) -> int:
    """Bytes of bits that a program handles at a time: fewer for more right-hand sides."""
    most = max(MOST_BYTES // sides, LEAST_BYTES)
    return min(max(int(triton.next_power_of_2(ceil_div(n, 8))), LEAST_BYTES), most)


def first_wrong_row(bits: torch.Tensor, offsets: torch.Tensor, nnz: int, n: int) -> int:
    """The first row whose ones do not fill what the offsets leave for it, or that has ones past
    column n; -1 where there is none. Waits for the device.
    """
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    table = (torch.arange(256, dtype=torch.uint8, device=bits.device)[:, None] >> places) & 1
    counts = table.sum(1)[bits.int()].sum(1)
    ends = torch.cat([offsets[1:], offsets.new_tensor([nnz])])
    wrong = (offsets + counts != ends) | (offsets < 0)
    wrong[0] |= offsets[0] != 0
    if n % 8:
        wrong |= bits[:, -1] >> (n % 8) != 0
    found = torch.nonzero(wrong)
    return int(found[0, 0]) if len(found) else -1
