"""The least-squares refit: kept entries whose outputs are nearest to the dense layer's.

It minimises E ||(S - A) x||^2 + lambda ||S - A||_F^2 over S on the mask, row by row, for the
calibration inputs x. With moments of two models (`Moments.cross`) it fits S x to the dense model's
A x'.
"""

import torch
from spectral_kernels.spectra import full_precision

from spectral_engine._util.threads import threads_for_product
from spectral_engine.matrix.moments import Moments
from spectral_engine.refitting.damping import damping_level
from spectral_engine.refitting.gradients import STEPS, TOLERANCE, masked_gradients

#: lambda as a share of the level of the second moments' diagonal, as in SparseGPT's own code.
DAMPING = 0.01
#: The least number of entries in the rows that are solved together.
_CHUNK = 1 << 16


def least_squares(
    weight: torch.Tensor,
    mask: torch.Tensor,
    moments: Moments,
    *,
    damping: float = DAMPING,
    tolerance: float = TOLERANCE,
    steps: int = STEPS,
) -> torch.Tensor:
    """The matrix on `mask` whose outputs are nearest to those of `weight`, row by row.

    With H = E[x x^T] + lambda I it solves (H_MM) s = (H w)_M for each row; lambda is `damping`
    times `damping_level`, nearly always the mean of H's diagonal. Rows are taken in runs, so that
    no more memory is used beside the moments than as much again.

    Args:
        weight: (m, n), float32 or float64. mask: (m, n), boolean.
        moments: of the inputs, (n, n).
    """
    H = moments.second.to(weight.dtype)
    ridge = damping * damping_level(H.diagonal())
    if ridge == 0.0:
        return weight * mask
    cross = None if moments.cross is None else moments.cross.to(weight.dtype)
    diagonal = H.diagonal() + ridge

    def apply(X: torch.Tensor) -> torch.Tensor:
        return torch.addmm(X, X, H, beta=ridge)

    solved = torch.empty_like(weight)
    step = max(H.shape[0] // 16, _CHUNK // H.shape[0], 1)
    for first in range(0, weight.shape[0], step):
        with full_precision(torch), threads_for_product(len(weight[first : first + step]), len(H)):
            rows = slice(first, first + step)
            W, kept = weight[rows], mask[rows]
            start = W * kept
            residual = apply(W - start)
            if cross is not None:
                residual += W @ cross - W @ H
            found = masked_gradients(apply, residual, kept, diagonal, (-1,), tolerance, steps)
            solved[rows] = start + found
    return solved
