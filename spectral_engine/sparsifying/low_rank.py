"""A matrix as a sparse one and two thin factors: A ~ S + L R, at the bytes of a sparse one.

Of K entries that the budget leaves, r (m + n) go to L (m, r) and R (r, n), and the rest to S. With
calibration inputs x and C C^T = E[x x^T] + lambda I, the error ||(S + L R - A) C||_F is that of the
outputs, and without inputs C = I. Given S the best L R is, by Eckart and Young, the truncated SVD
of (A - S) C times C^-1; given L R, S is what the recipe makes of A - L R. The two take turns, as in
OATS (arXiv 2409.13652), whose C is the diagonal of root mean squares (metric "scaled").

While they do, S keeps the largest entries as they are. The last S is that of the whole recipe;
where its refit fits outputs, L R and the values of S on their mask then take a few turns more. The
first L R is that of A: on real networks that ended nearer to A than to begin with S.
"""

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from spectral_kernels import entries_to_keep
from spectral_kernels.spectra import full_precision, randomized_svd

from spectral_engine._util.threads import one_thread
from spectral_engine.matrix.arrays import as_matrix, largest_magnitude
from spectral_engine.matrix.moments import Moments
from spectral_engine.recipe.low_rank import LowRank
from spectral_engine.recipe.methods import Magnitude
from spectral_engine.recipe.recipe import Recipe
from spectral_engine.recipe.refits import BiasCorrection
from spectral_engine.refitting.apply import bias_shift
from spectral_engine.refitting.damping import damping_level
from spectral_engine.refitting.least_squares import DAMPING, least_squares
from spectral_engine.refitting.spectral import SMALL
from spectral_engine.sparsifying.report import Sparsified

#: Shares of the budget that factors are tried with, in turn, where no rank is given.
SHARES = (0.1, 0.25, 0.5)
#: Turns after the last mask, where a refit fits outputs.
LAST_TURNS = 3


class Sparsify(Protocol):
    """Makes a matrix sparse by a recipe without factors, to a sparsity, with moments or without."""

    def __call__(
        self, weight: torch.Tensor, recipe: Recipe, sparsity: float, moments: Moments | None
    ) -> Sparsified: ...


class Factors(NamedTuple):
    """L (m, r) and R (r, n)."""

    left: torch.Tensor
    right: torch.Tensor

    @property
    def product(self) -> torch.Tensor:
        """L R, (m, n), in the precision of `working`."""
        return working(self.left) @ working(self.right)


class Root:
    """C of the error ||E C||_F: a lower triangle (n, n), the diagonal (n,), or None for I."""

    def __init__(self, moments: Moments | None, metric: str, dtype: torch.dtype) -> None:
        self.value: torch.Tensor | None = None
        if moments is None:
            return
        if metric == "scaled":
            scale = moments.scale.to(dtype)
            self.value = scale if bool((scale > 0.0).any()) else None
            return
        H = moments.second.double().clone()
        ridge = DAMPING * damping_level(H.diagonal())
        if ridge == 0.0:
            return
        H.diagonal().add_(ridge)
        try:
            with one_thread():  # or the last bits hang on their number
                self.value = torch.linalg.cholesky(H).to(dtype)
        except RuntimeError as error:
            raise ValueError(f"inputs: second moments that cannot be factored: {error}") from error

    def times(self, error: torch.Tensor) -> torch.Tensor:
        """E C."""
        if self.value is None:
            return error
        return error * self.value if self.value.ndim == 1 else error @ self.value

    def undone(self, rows: torch.Tensor) -> torch.Tensor:
        """X with X C = rows; 0 where C is."""
        if self.value is None:
            return rows
        if self.value.ndim == 1:
            return torch.where(self.value > 0.0, rows / self.value, 0.0)
        solved: torch.Tensor = torch.linalg.solve_triangular(
            self.value, rows, upper=False, left=False
        )
        return solved


def with_factors(
    weight: Any, recipe: Recipe, sparsity: float, moments: Moments | None, sparsify: Sparsify
) -> Sparsified:
    """A weight made sparse beside two factors, both within its budget.

    Args:
        weight: as for `sparsify_matrix`; no CuPy array. recipe: with a `LowRank`.
        sparsity: one minus the share of entries that S, L and R have together.
        moments: of its inputs, or None.
        sparsify: what is done to the remainder.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.
    """
    start = time.perf_counter()
    if not isinstance(weight, torch.Tensor | np.ndarray):
        raise TypeError(
            f"weight: low_rank takes a torch tensor or a NumPy array; got {type(weight).__name__}"
        )
    if moments is not None and moments.cross is not None:
        raise ValueError("asymmetric: low_rank fits a layer to its own inputs; expected False")
    if moments is not None and recipe.bias_correction:
        moments = moments.deviations()
    A = as_matrix(weight)
    low_rank = recipe.low_rank or LowRank()
    with full_precision(torch), one_thread() if A.numel() <= SMALL else nullcontext():
        search = _Search(working(A), A.dtype, recipe, low_rank, sparsity, moments, sparsify)
        best = search.best()
    values = best.sparse.to(A.dtype)
    if not math.isfinite(largest_magnitude(values)):
        raise ValueError(f"low_rank: the remainder overflows {A.dtype}; use a wider dtype")
    stored = 0 if best.factors is None else sum(part.numel() for part in best.factors)
    nnz = int(torch.count_nonzero(values)) + stored
    merged = values if best.factors is None else working(values) + best.factors.product
    report = replace(
        best.report.report, recipe=recipe, requested=float(sparsity), nnz=nnz,
        sparsity=1.0 - nnz / A.numel(), seconds=time.perf_counter() - start,
        low_rank=0 if best.factors is None else best.factors.left.shape[1], _pair=(A, merged),
    )  # fmt: skip
    shift = None
    if moments is not None and recipe.bias_correction:
        shift = bias_shift(A, merged, moments)
    shaped = values.reshape(weight.shape)
    array = shaped.numpy() if isinstance(weight, np.ndarray) else shaped
    return Sparsified(array, report, shift, best.factors)


class _Fitted(NamedTuple):
    """S, in working precision; what made it; L and R, None for rank 0; the error."""

    sparse: torch.Tensor
    report: Sparsified
    factors: Factors | None
    error: float


class _Search:
    """What is the same for each rank that is tried."""

    def __init__(
        self, A: torch.Tensor, dtype: torch.dtype, recipe: Recipe, low_rank: LowRank,
        sparsity: float, moments: Moments | None, sparsify: Sparsify,
    ) -> None:  # fmt: skip
        self.A, self.dtype, self.moments, self.sparsify = A, dtype, moments, sparsify
        self.low_rank, self.sparsity = low_rank, sparsity
        self.recipe = recipe.without_low_rank()
        self.largest = Recipe(Magnitude(), budget=recipe.budget)
        self.root = Root(moments, low_rank.metric, A.dtype)
        refit = recipe.refit
        fits = refit is not None and refit.needs_inputs and not isinstance(refit, BiasCorrection)
        self.fits_outputs = fits and moments is not None and low_rank.metric == "outputs"

    def best(self) -> _Fitted:
        """Of the ranks in turn, as long as the error falls."""
        found, *others = self.ranks()
        best = self.fitted(found)
        for rank in others:
            tried = self.fitted(rank)
            if tried.error >= best.error:
                break
            best = tried
        return best

    def ranks(self) -> Iterator[int]:
        """Ranks to try, ascending, each once."""
        m, n = self.A.shape
        kept = entries_to_keep(m * n, self.sparsity)
        most = max(0, min(m, n, (kept - m) // (m + n)))
        if self.low_rank.rank is not None:
            yield min(self.low_rank.rank, most)
            return
        shares = (round(share * kept / (m + n)) for share in SHARES)
        yield from sorted({0, *(min(max(1, rank), most) for rank in shares)})

    def fitted(self, rank: int) -> _Fitted:
        """S and L R of this rank."""
        A, m, n = self.A, *self.A.shape
        if rank == 0:
            alone = self.sparsify(A, self.recipe, self.sparsity, self.moments)
            return self._measured(alone, alone.weight, None)
        share = 1.0 - (entries_to_keep(m * n, self.sparsity) - rank * (m + n)) / (m * n)
        sparse = torch.zeros_like(A)
        for turn in range(self.low_rank.steps):
            factors = self._leading(A - sparse, rank)
            recipe = self.recipe if turn == self.low_rank.steps - 1 else self.largest
            out = self.sparsify(A - factors.product, recipe, share, self.moments)
            sparse = out.weight
        if self.fits_outputs and self.moments is not None:
            mask = sparse != 0
            for _ in range(LAST_TURNS):
                factors = self._leading(A - sparse, rank)
                sparse = least_squares(A - factors.product, mask, self.moments)
        return self._measured(out, sparse, factors)

    def _leading(self, matrix: torch.Tensor, rank: int) -> Factors:
        """The best L R of a matrix, in the weight's dtype; L's columns are as long as R's rows."""
        U, values, Vh = randomized_svd(self.root.times(matrix), rank)[:3]
        left, right = U * values, self.root.undone(Vh)
        lengths = torch.linalg.vector_norm(left, dim=0), torch.linalg.vector_norm(right, dim=1)
        some = (lengths[0] > 0.0) & (lengths[1] > 0.0)
        even = torch.where(some, (lengths[1] / lengths[0]).sqrt(), 1.0)
        left, right = (left * even).to(self.dtype), (right / even[:, None]).to(self.dtype)
        return Factors(left.contiguous(), right.contiguous())

    def _measured(self, out: Sparsified, sparse: torch.Tensor, factors: Factors | None) -> _Fitted:
        missing = sparse - self.A if factors is None else sparse + factors.product - self.A
        error = float(torch.linalg.vector_norm(self.root.times(missing).double()))
        return _Fitted(sparse, out, factors, error)


def working(matrix: torch.Tensor) -> torch.Tensor:
    """Float32, or float64 where the matrix is."""
    return matrix if matrix.dtype == torch.float64 else matrix.float()
