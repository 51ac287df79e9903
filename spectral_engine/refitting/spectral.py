"""The spectral refit: kept entries nearest to the dense matrix in its leading subspaces.

It minimises ||U_k^T (S - A)||_F^2 + ||(S - A) V_k||_F^2 + ridge ||S - A||_F^2 over S on the mask,
with the k leading singular vectors U_k, V_k of the dense A, and needs no data.
"""

from contextlib import nullcontext

import torch
from spectral_kernels.spectra import full_precision, randomized_svd

from spectral_engine._util.threads import one_thread
from spectral_engine.refitting.gradients import STEPS, TOLERANCE, masked_gradients

#: The weight of the whole matrix's error beside that of its leading subspaces; under 0.1 the refit
#: overfits them.
RIDGE = 0.3
#: Leading singular vectors, as a share of min(m, n).
SUBSPACE_SHARE = 1 / 16
#: Up to so many entries one thread does it all, in a sixth of a second. BLAS divides products with
#: a few singular vectors between threads, and the last bits hang on how many there are.
SMALL = 1 << 18


def spectral_refit(
    weight: torch.Tensor,
    mask: torch.Tensor,
    *,
    rank: int | None = None,
    ridge: float = RIDGE,
    tolerance: float = TOLERANCE,
    steps: int = STEPS,
) -> torch.Tensor:
    """The matrix on `mask` nearest to `weight` in its leading singular subspaces.

    Args:
        weight: (m, n), float32 or float64. mask: (m, n), boolean.
        rank: k leading singular vectors; by default a sixteenth of min(m, n).
        ridge: weight of the whole matrix's error; above 0.

    The values of a matrix of up to `SMALL` entries are the same on any number of threads; those of
    a larger one may differ by rounding (by up to 2e-3 of a value near 0). What is kept is the mask.
    """
    with one_thread() if weight.numel() <= SMALL else nullcontext():
        return _refit(weight, mask, rank, ridge, tolerance, steps)


def _refit(
    weight: torch.Tensor,
    mask: torch.Tensor,
    rank: int | None,
    ridge: float,
    tolerance: float,
    steps: int,
) -> torch.Tensor:
    k = rank or max(1, round(SUBSPACE_SHARE * min(weight.shape)))
    svd = randomized_svd(weight, min(k, *weight.shape))
    U: torch.Tensor = svd.U
    Vh: torch.Tensor = svd.Vh

    def apply(X: torch.Tensor) -> torch.Tensor:
        return U @ (U.mT @ X) + (X @ Vh.mT) @ Vh + ridge * X

    diagonal = U.square().sum(1)[:, None] + Vh.square().sum(0) + ridge
    with full_precision(torch):
        start = weight * mask
        step = masked_gradients(
            apply, apply(weight - start), mask, diagonal, (-2, -1), tolerance, steps
        )
    return start + step
