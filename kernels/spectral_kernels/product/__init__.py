"""A sparse matrix in few bytes, and products with it that never make the dense matrix.

`pack` keeps the values that are not zero and one bit for each entry. `Deltas` has the zeros before
each value instead, `Positions` the columns of N values in every M. `unpack` gives the same matrix
back, bit for bit, `blocks` some rows of it at a time; `prepare` makes an operator that multiplies
straight from what is held.
"""

from spectral_kernels.product.deltas import Deltas, deltas_length, to_deltas
from spectral_kernels.product.operator import Operator, prepare
from spectral_kernels.product.packed import Packed, pack
from spectral_kernels.product.positions import PATTERNS, Positions, code_bits
from spectral_kernels.product.unpacking import blocks, unpack

__all__ = [
    "PATTERNS", "Deltas", "Operator", "Packed", "Positions", "blocks", "code_bits", "deltas_length",
    "pack", "prepare",
    "to_deltas", "unpack",
]  # fmt: skip
