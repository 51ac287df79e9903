"""2:4 by the matrix units that skip zeros, of CUDA devices from capability 8.0 on, through torch.

torch keeps a copy of its own: the values, and two bits for each, in the order of the units.
"""

from typing import Any

import torch

from spectral_kernels.product.gpu import packing
from spectral_kernels.product.packed import Packed

DTYPES = (torch.float16, torch.bfloat16)
#: Rows and columns of which a matrix has multiples, the larger ones of torch's two libraries.
ROWS, COLUMNS = 32, 64


def has_units(device: torch.device) -> bool:
    """Whether a device multiplies by 2:4 matrices."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def fits(packed: Packed) -> bool:
    """Whether a packed matrix is 2:4 throughout, of a dtype and shape that torch takes. Waits for
    the device where dtype and shape fit.
    """
    m, n = packed.shape
    if packed.values.dtype not in DTYPES or m % ROWS or n % COLUMNS or 2 * packed.nnz > m * n:
        return False
    table = [max((byte & 15).bit_count(), (byte >> 4).bit_count()) <= 2 for byte in range(256)]
    right = torch.tensor(table, device=packed.bitmask.device)
    return bool(right[packed.bitmask.int()].all())


def tensor_of(packed: Packed) -> Any:
    """The matrix as torch's semi-structured tensor."""
    dense = packing.unpack(packed.values, packed.bitmask, packed.row_offsets, packed.shape)
    return torch.sparse.to_sparse_semi_structured(dense)
