"""Adjust the kept entries of a sparse matrix, on the mask that it has or on one found for it.

With A the dense matrix (m, n), M its mask and S = 0 outside M:

| refit          | minimises over S                                                                |
|----------------|---------------------------------------------------------------------------------|
| Scale          | nothing: one scalar gives S the sigma_1 of A                                    |
| SpectralRefit  | the error in the leading singular subspaces of A, see `spectral_refit`          |
| LeastSquares   | E ||(S - A) x||^2 over calibration inputs x, see `least_squares`                |
| SparseGPT      | the same, greedily from column to column, see `sparsegpt`                       |
| ALPS           | the same by least squares, on a mask found for it, see `alps`                   |
| BiasCorrection | nothing: S stays as it is                                                       |
"""

import math
from dataclasses import dataclass

import spectral_kernels
import torch
from spectral_kernels import NM, Blocks
from spectral_kernels.spectra import spectral_norm

from spectral_engine.matrix.arrays import as_matrix, largest_magnitude
from spectral_engine.matrix.moments import Moments
from spectral_engine.recipe.refits import (
    ALPS,
    BiasCorrection,
    Refit,
    Scale,
    SparseGPT,
    SpectralRefit,
)
from spectral_engine.refitting.alps import alps_mask
from spectral_engine.refitting.least_squares import least_squares
from spectral_engine.refitting.sparsegpt import sparsegpt
from spectral_engine.refitting.spectral import spectral_refit


@dataclass(frozen=True)
class MaskBudget:
    """How many entries a refit that chooses the mask keeps; see `spectral_kernels.sparsify`."""

    sparsity: float
    group: str
    pattern: NM | Blocks | None = None

    def keep_largest(self, scores: torch.Tensor) -> torch.Tensor:
        """A copy of a matrix, with zeros where an entry is not among the largest."""
        kept: torch.Tensor = spectral_kernels.sparsify(
            scores,
            sparsity=self.sparsity,
            group=self.group,
            pattern=None if self.pattern is None else str(self.pattern),
        ).weight
        return kept


def refitted(
    refit: Refit,
    weight: torch.Tensor,
    sparse: torch.Tensor,
    moments: Moments | None = None,
    budget: MaskBudget | None = None,
) -> torch.Tensor:
    """`sparse` with its entries adjusted, in its dtype; `Scale` adjusts them in place.

    Args:
        refit: one of the table above.
        weight, sparse: (m, n), any floating dtype.
        moments: of the inputs, where the refit needs them.
        budget: given where the refit may choose the mask; it is that of `sparse` otherwise.

    Raises:
        ValueError: the values do not fit the dtype, or moments are missing or cannot be factored.
    """
    if isinstance(refit, BiasCorrection):
        return sparse
    if isinstance(refit, Scale):
        return match_first_value(weight, sparse)
    A = weight if weight.dtype == torch.float64 else weight.float()
    mask = sparse != 0
    if isinstance(refit, SpectralRefit):
        return fitting(spectral_refit(A, mask), sparse.dtype, refit)
    if moments is None:
        raise ValueError(f"refit: {refit!r} needs calibration inputs; got none")
    if isinstance(refit, SparseGPT):
        pattern = None if budget is None else budget.pattern
        if budget is None or isinstance(pattern, Blocks):
            values = sparsegpt(A, moments, 0.0, mask=mask)
        else:
            group = None if pattern is None else (pattern.keep, pattern.of)
            by_row = budget.group == "row"
            values = sparsegpt(A, moments, budget.sparsity, by_row=by_row, pattern=group)
    else:
        if isinstance(refit, ALPS) and budget is not None:
            mask = alps_mask(A, moments, budget.keep_largest)
        values = least_squares(A, mask, moments)
    return fitting(values, sparse.dtype, refit)


def match_first_value(weight: torch.Tensor, sparse: torch.Tensor) -> torch.Tensor:
    """`sparse`, multiplied in place by the scalar that gives it the largest singular value of
    `weight`.

    Raises:
        ValueError: what it gives does not fit the dtype.
    """
    before = float(spectral_norm(as_matrix(weight)).value)
    after = float(spectral_norm(as_matrix(sparse)).value)
    if after == 0.0:
        return sparse
    scale = before / after
    if largest_magnitude(sparse) * scale > torch.finfo(sparse.dtype).max:
        raise ValueError(
            f"refit: entries times {scale:.4g}, which restores the largest singular value, "
            f"overflow {sparse.dtype}; use refit=None, or a wider dtype"
        )
    return sparse.mul_(scale)


def bias_shift(weight: torch.Tensor, sparse: torch.Tensor, moments: Moments) -> torch.Tensor:
    """What to add to the bias so that the mean output stays: E[A x'] - E[S x], (m,), float64."""
    dense = moments.mean if moments.dense_mean is None else moments.dense_mean
    return weight.double() @ dense.double() - sparse.double() @ moments.mean.double()


def fitting(values: torch.Tensor, dtype: torch.dtype, refit: Refit) -> torch.Tensor:
    """`values` in the weight's dtype.

    Raises:
        ValueError: some do not fit it.
    """
    cast = values.to(dtype)
    if not math.isfinite(largest_magnitude(cast)):
        raise ValueError(
            f"refit: entries that {refit!r} gives overflow {dtype}; use refit=None, "
            "or a wider dtype"
        )
    return cast
