"""The functions of `budget`, compiled: same source, same bits, and no Python loop over 2^18 values.

Histograms and values are int64 arrays here. Nothing is compiled before it is first called.
"""

from typing import TYPE_CHECKING

from spectral_kernels._numba import compiled
from spectral_kernels.reference import budget

if TYPE_CHECKING:
    from spectral_kernels.reference.budget import (
        find_rank,
        find_rank_value,
        prepare,
        solve_bins,
        solve_values,
    )
else:
    find_rank = compiled(budget.find_rank)
    find_rank_value = compiled(budget.find_rank_value)
    prepare = compiled(budget.prepare)
    solve_bins = compiled(budget.solve_bins)
    solve_values = compiled(budget.solve_values)

__all__ = ["find_rank", "find_rank_value", "prepare", "solve_bins", "solve_values"]
