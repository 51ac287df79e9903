"""Adjust the kept entries of a sparse matrix, on the mask that it has.

With A the dense matrix (m, n), M its mask and S = 0 outside M:

| refit         | minimises over S                                                               |
|---------------|--------------------------------------------------------------------------------|
| scale         | nothing: one scalar that gives S the sigma_1 of A                              |
| spectral      | ||U_k^T (S - A)||_F^2 + ||(S - A) V_k||_F^2 + ridge ||S - A||_F^2, data-free   |
| least-squares | E ||(S - A) x||^2 over calibration inputs x, with damping                      |
| sparsegpt     | the same, greedily from column to column, see `sparsegpt`                      |
| admm          | the same by least squares, on a mask found for it where it may be, see `admm`  |

The two quadratics are solved by conjugate gradients with the gradient masked and a Jacobi
preconditioner: products with whole matrices, where a Cholesky factor for each row's own mask costs
n^3 / 24 operations a row at half density, and memory for each.

With moments of two models (`Moments.cross`), least squares fits S x to the dense model's A x'.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import spectral_kernels
import torch
from spectral_kernels.reference.patterns import Blocks, parse_pattern
from spectral_kernels.spectra.norms import spectral_norm
from spectral_kernels.spectra.precision import full_precision
from spectral_kernels.spectra.svd import randomized_svd

from spectral_engine.matrix.alps import admm_mask
from spectral_engine.matrix.arrays import as_matrix, largest_magnitude
from spectral_engine.matrix.moments import Moments
from spectral_engine.matrix.sparsegpt import sparsegpt

#: Added to the second moments' diagonal, as a share of its mean, as in SparseGPT's own code.
DAMPING = 0.01
#: The weight of the whole matrix's error beside that of its leading subspaces; under 0.1 it
#: overfits them.
RIDGE = 0.3
#: Leading singular vectors of the spectral refit, as a share of min(m, n).
SUBSPACE_SHARE = 1 / 16
#: Conjugate gradients end at this share of the first residual, or after so many steps. On MiniLM
#: 20 steps are within .1 % of the least error.
TOLERANCE = 1e-3
STEPS = 20
#: Entries that rows of a least-squares problem are taken together for, at least.
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Budget:
    """How many entries a refit that chooses the mask keeps; see `spectral_kernels.sparsify`."""

    sparsity: float
    group: str
    pattern: str | None = None

    def keep_largest(self, scores: torch.Tensor) -> torch.Tensor:
        """A copy of a matrix, with zeros where an entry is not among the largest."""
        kept: torch.Tensor = spectral_kernels.sparsify(
            scores, sparsity=self.sparsity, group=self.group, pattern=self.pattern
        ).weight
        return kept


def refitted(
    refit: str,
    weight: torch.Tensor,
    sparse: torch.Tensor,
    moments: Moments | None = None,
    budget: Budget | None = None,
) -> torch.Tensor:
    """`sparse` with its entries adjusted, in its dtype.

    Args:
        refit: a name of the table above.
        weight, sparse: (m, n), any floating dtype.
        moments: of the inputs, where the refit needs them.
        budget: given where the refit may choose the mask; it is that of `sparse` otherwise.

    Raises:
        ValueError: the values do not fit the dtype, or moments are missing or cannot be factored.
    """
    if refit == "scale":
        return match_first_value(weight, sparse)
    A = weight if weight.dtype == torch.float64 else weight.float()
    mask = sparse != 0
    if refit == "spectral":
        return fitting(spectral(A, mask), sparse.dtype, refit)
    if moments is None:
        raise ValueError(f"refit: {refit!r} needs calibration inputs; got none")
    if refit == "sparsegpt":
        pattern = (
            None if budget is None or budget.pattern is None else parse_pattern(budget.pattern)
        )
        if budget is None or isinstance(pattern, Blocks):
            values = sparsegpt(A, moments, 0.0, mask=mask)
        else:
            group = None if pattern is None else (pattern.keep, pattern.of)
            by_row = budget.group == "row"
            values = sparsegpt(A, moments, budget.sparsity, by_row=by_row, pattern=group)
    else:
        if refit == "admm" and budget is not None:
            mask = admm_mask(A, moments, budget.keep_largest)
        values = least_squares(A, mask, moments)
    return fitting(values, sparse.dtype, refit)


def match_first_value(weight: torch.Tensor, sparse: torch.Tensor) -> torch.Tensor:
    """`sparse` times the scalar that gives it the largest singular value of `weight`.

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
    scaled: torch.Tensor = sparse * scale
    return scaled


def spectral(
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
    """
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
    times the mean of H's diagonal. Rows are taken in runs, so that no more memory is used beside
    the moments than as much again.

    Args:
        weight: (m, n), float32 or float64. mask: (m, n), boolean.
        moments: of the inputs, (n, n).
    """
    H = moments.second.to(weight.dtype)
    ridge = damping * float(H.diagonal().mean())
    if ridge == 0.0:
        return weight * mask
    cross = None if moments.cross is None else moments.cross.to(weight.dtype)
    diagonal = H.diagonal() + ridge

    def apply(X: torch.Tensor) -> torch.Tensor:
        return torch.addmm(X, X, H, beta=ridge)

    solved = torch.empty_like(weight)
    step = max(H.shape[0] // 16, _CHUNK // H.shape[0], 1)
    with full_precision(torch):
        for first in range(0, weight.shape[0], step):
            rows = slice(first, first + step)
            W, kept = weight[rows], mask[rows]
            start = W * kept
            residual = apply(W - start)
            if cross is not None:
                residual += W @ cross - W @ H
            found = masked_gradients(apply, residual, kept, diagonal, (-1,), tolerance, steps)
            solved[rows] = start + found
    return solved


def masked_gradients(
    apply: Callable[[torch.Tensor], torch.Tensor],
    residual: torch.Tensor,
    mask: torch.Tensor,
    diagonal: torch.Tensor,
    dim: tuple[int, ...],
    tolerance: float,
    steps: int,
) -> torch.Tensor:
    """X on `mask` that minimises <X, apply(X)> / 2 - <residual, X>, by conjugate gradients.

    Entries along `dim` are one problem: (-1,) for rows that do not know of each other. `diagonal`
    is that of `apply`, which is symmetric and positive definite. All problems end when the
    preconditioned residual of each is `tolerance` times its first.
    """
    kept = mask.to(residual.dtype)  # products with booleans are slow
    precondition = kept / diagonal
    X = torch.zeros_like(residual)
    r = residual * kept
    z = r * precondition
    p = z.clone()
    energy = (r * z).sum(dim, keepdim=True)
    enough = energy * tolerance**2
    for _ in range(steps):
        if bool((energy <= enough).all()):
            break
        q = apply(p)
        curvature = (p * q).sum(dim, keepdim=True)  # p is 0 outside the mask
        length = torch.where(curvature > 0.0, energy / curvature, 0.0)
        X.addcmul_(length, p)
        r.addcmul_(-length, q)  # outside the mask r is of no account: z is 0 there
        torch.mul(r, precondition, out=z)
        previous, energy = energy, (r * z).sum(dim, keepdim=True)
        p.mul_(torch.where(previous > 0.0, energy / previous, 0.0)).add_(z)
    return X


def bias_shift(weight: torch.Tensor, sparse: torch.Tensor, moments: Moments) -> torch.Tensor:
    """What to add to the bias so that the mean output stays: E[A x'] - E[S x], (m,), float64."""
    dense = moments.mean if moments.dense_mean is None else moments.dense_mean
    return weight.double() @ dense.double() - sparse.double() @ moments.mean.double()


def fitting(values: torch.Tensor, dtype: torch.dtype, refit: str) -> torch.Tensor:
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
