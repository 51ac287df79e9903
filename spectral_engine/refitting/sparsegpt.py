"""SparseGPT: prune column after column, and let the columns to come make up for it.

Frantar, Alistarh (arXiv 2301.00774). With H = E[x x^T] + lambda I and U the upper Cholesky factor
of its inverse (H^-1 = U^T U), dropping entry w_j of a row costs (w_j / U_jj)^2, and the error is
least if the row's later entries then change by -(w_j / U_jj) U_j,: (optimal brain surgeon).
"""

import torch
from spectral_kernels.spectra import full_precision

from spectral_engine._util.threads import one_thread, threads_for_product
from spectral_engine.matrix.moments import Moments
from spectral_engine.refitting.damping import damping_level

#: Columns whose entries are judged together, and that change before the rest of the matrix does.
BLOCK = 128
#: How often the damping is raised tenfold where the moments are too near singular to factor.
_ATTEMPTS = 4


def sparsegpt(
    weight: torch.Tensor,
    moments: Moments,
    sparsity: float,
    *,
    mask: torch.Tensor | None = None,
    by_row: bool = False,
    pattern: tuple[int, int] | None = None,
    damping: float = 0.01,
) -> torch.Tensor:
    """A sparse matrix, float32 or float64 as `weight` is.

    Args:
        weight: (m, n). moments: of the inputs, (n, n).
        sparsity: fraction of zeros, in every block of columns as nearly as rounding allows; exact
            in the whole matrix, or with `by_row` in every row.
        mask: boolean (m, n), True where an entry is kept; chosen on the way if not given, and then
            entries that are 0 in `weight` stay so.
        pattern: (N, M) to keep N of every M neighbours of a row, whatever the sparsity.
        damping: lambda as a share of `damping_level`, nearly always the mean of the diagonal.

    Raises:
        ValueError: the moments cannot be factored.
    """
    m, n = weight.shape
    size = n if by_row else n * m
    judged = BLOCK if pattern is None else pattern[1]
    block = BLOCK // judged * judged or judged
    dropped = 0
    with full_precision(torch), threads_for_product(m, n):
        U, ridge = inverse_factor(moments.second.to(weight.dtype), damping)
        W = weight.clone()
        if moments.cross is not None:  # the dense weights that give W x' from the inputs x
            target = weight @ moments.cross.to(weight.dtype) + ridge * weight
            W = target @ U.mT @ U
        for start in range(0, n, block):
            stop = min(start + block, n)
            here, U_here = W[:, start:stop], U[start:stop, start:stop]
            drop = (
                torch.zeros_like(here, dtype=torch.bool) if mask is None else ~mask[:, start:stop]
            )
            errors, zero = torch.empty_like(here), weight[:, start:stop] == 0.0
            for j in range(stop - start):
                if mask is None and j % judged == 0:
                    some = slice(j, j + judged)
                    cost = (here[:, some] / U_here.diagonal()[some]).square()
                    cost.masked_fill_(zero[:, some], -1.0)
                    if pattern is not None:
                        drop[:, some] = _smallest(cost, pattern[1] - pattern[0], True)
                    else:
                        target_count = round(sparsity * size * stop / n)
                        drop[:, some] = _smallest(cost, target_count - dropped, by_row)
                        dropped = target_count
                    drop[:, some] |= zero[:, some]
                errors[:, j] = here[:, j] * drop[:, j] / U_here[j, j]
                here[:, j:] -= errors[:, j, None] * U_here[j, j:]
            here.masked_fill_(drop, 0.0)
            W[:, stop:].addmm_(errors, U[start:stop, stop:], alpha=-1)
    return W


def inverse_factor(second: torch.Tensor, damping: float) -> tuple[torch.Tensor, float]:
    """U, upper triangular, with U^T U the inverse of `second` + lambda I, and lambda.

    Raises:
        ValueError: not positive definite, also with a damping 1000 times as large.
    """
    level = damping_level(second.diagonal()) or 1.0
    for attempt in range(_ATTEMPTS):
        ridge = damping * 10**attempt * level
        H = second.clone()
        H.diagonal().add_(ridge)
        with one_thread():  # or the last bits hang on their number
            lower, failed = torch.linalg.cholesky_ex(H)
            if bool(failed):
                continue
            torch.cholesky_inverse(lower, out=H)
            upper, failed = torch.linalg.cholesky_ex(H, upper=True)
        if not bool(failed):
            return upper, ridge
    raise ValueError(
        "refit: 'sparsegpt' expected second moments that are positive definite; got a matrix of "
        f"order {len(second)} that is not, also with damping {damping * 10 ** (_ATTEMPTS - 1):g}"
    )


def _smallest(cost: torch.Tensor, count: int, by_row: bool) -> torch.Tensor:
    """Boolean, True at the `count` smallest entries, of all or of each row."""
    flat = cost if by_row else cost.reshape(1, -1)
    order = flat.topk(count, dim=-1, largest=False).indices
    found = torch.zeros_like(flat, dtype=torch.bool).scatter_(-1, order, True)
    return found.reshape(cost.shape)
