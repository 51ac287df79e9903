"""A sparse matrix in few bytes, and products with it that never make the dense matrix.

`pack` keeps the values that are not zero and one bit for each entry; `unpack` gives the same matrix
back, bit for bit; `prepare` makes an operator that multiplies straight from values and bits.
"""

from spectral_kernels.product.operator import Operator, prepare
from spectral_kernels.product.packed import Packed, pack, unpack

__all__ = ["Operator", "Packed", "pack", "prepare", "unpack"]
