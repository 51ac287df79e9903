"""Sparsify one matrix: the engine's front door to the kernels."""

import math
import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import spectral_kernels
import torch
from spectral_kernels.reference.patterns import pattern_sparsity
from spectral_kernels.spectra.svd import randomized_svd

from spectral_engine.matrix.arrays import (
    as_matrix,
    as_tensor,
    check_rank,
    frobenius_norm,
    largest_magnitude,
)
from spectral_engine.matrix.errors import Errors, errors
from spectral_engine.matrix.moments import Moments
from spectral_engine.matrix.refit import Budget, bias_shift, refitted
from spectral_engine.recipe.legacy import Method, automatic, resolve


class Default(float):
    """The default of an argument: a number that can be told from the same one given by a user."""


DEFAULT_SPARSITY = Default(0.9)
#: The rank of a spectral score where none is given, as a share of min(m, n).
DEFAULT_RANK_SHARE = 0.5


def given(sparsity: float | None) -> float | None:
    """The argument as the user gave it, None if it was left out."""
    return None if isinstance(sparsity, Default) else sparsity


@dataclass
class SparsifyReport:
    """What was done to one matrix, and how well it went.

    sparsity is the fraction of zeros reached, `requested` the one asked for; c is that of
    p = min(1, c g(s)), or the threshold, nan under a pattern "N:M", where each group has its own,
    in units of the score, which for "aligned" is A * B times a power of two;
    rank is that of the score, None if it needs none.
    seconds: wall time, the truncated SVD included, compilation of first use too.
    """

    method: str
    law: str
    rescale: bool
    rank: int | None
    group: str
    requested: float
    sparsity: float
    nnz: int
    size: int
    c: float
    seconds: float
    pattern: str | None
    _pair: tuple[Any, Any] = field(repr=False)

    @cached_property
    def errors(self) -> Errors:
        """Errors against the original, measured when first asked for.

        The report holds on to the original array for this; do not change it before.
        """
        return errors(*self._pair)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the errors."""
        return {
            "method": self.method,
            "law": self.law,
            "rescale": self.rescale,
            "rank": self.rank,
            "group": self.group,
            "requested": self.requested,
            "sparsity": self.sparsity,
            "nnz": self.nnz,
            "size": self.size,
            "c": self.c,
            "seconds": self.seconds,
            "pattern": self.pattern,
        }


@dataclass(frozen=True)
class Sparsified:
    """A sparsified array; `weight` has the kind, dtype, shape and device of the input.

    bias: with `bias_correction`, what to add to the layer's bias, a float64 tensor (m,); else None.
    """

    weight: Any
    report: SparsifyReport
    bias: torch.Tensor | None = None

    @property
    def mask(self) -> Any:
        """Boolean array, True where the weight is not zero; made when asked for, not stored."""
        return self.weight != 0

    @property
    def nnz(self) -> int:
        """Number of nonzeros."""
        return self.report.nnz

    @property
    def sparsity(self) -> float:
        """Fraction of zeros."""
        return self.report.sparsity


def sparsify(
    weight: Any,
    method: str = "magnitude",
    sparsity: float | None = DEFAULT_SPARSITY,
    *,
    rank: int | None = None,
    law: str | None = None,
    law_parameter: float | None = None,
    rescale: bool | None = None,
    mixture: float | None = None,
    refit: str | None = None,
    inputs: Any = None,
    bias_correction: bool = False,
    seed: int = 0,
    stream: int = 0,
    group: str = "tensor",
    pattern: str | None = None,
) -> Sparsified:
    """A sparse copy of `weight` with nearly its spectrum.

    Args:
        weight: NumPy array, torch tensor (CPU or CUDA) or CuPy array of two or more dimensions,
            float16, bfloat16, float32 or float64; seen as the matrix (shape[0], -1).
        method: "magnitude", "randomized", "principal", "aligned" or "auto"; see `methods`.
        sparsity: fraction of zeros, in [0, 1), by default 0.9. Exact where the method keeps the
            largest; where it draws, the expected count is within 1e-3 and the count itself within
            sampling noise. A pattern "N:M" has one of its own, (M - N) / M.
        rank: of B for "principal" and "aligned"; by default half of min(m, n).
        law, law_parameter, rescale: override the method's own; laws are in
            `spectral_kernels.reference.laws`, with formulas and sources.
        mixture: for "principal", the magnitude's share t (by default 1/2, see `methods`) in
            s^2 = (1 - t) B^2 / ||B||_F^2 + t A^2 / ||A||_F^2.
        refit: None, or how the kept entries are adjusted: "scale", "spectral", and with `inputs`
            "least-squares", "sparsegpt" and "admm", of which the last two choose their own mask
            where the method is "magnitude" and draws nothing; see `refit`.
        inputs: calibration inputs (..., n) of the layer, or their `Moments`. Each score is
            multiplied by the root mean square of its input feature, which makes "magnitude" by row
            into Wanda (arXiv 2306.11695); spectral scores are of A diag(rms).
        bias_correction: also find what keeps the mean output when added to the bias, `out.bias`.
            Features are then weighed, and outputs fitted, by their deviations from the mean.
        seed, stream: the draws of tensor `stream` under `seed`; the same bits on every backend.
        group: "tensor", or "row" to give every row the same sparsity.
        pattern: None; "N:M", as "2:4", to keep N of every M consecutive columns, also where the
            method draws; or blocks "RxC", as "16x16", kept whole or not, by the sum of their
            squared scores. Rows and columns must be multiples; see `spectral_kernels`.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.
    """
    refit, group = automatic(method, inputs is not None, refit, group, pattern)
    chosen = resolve(
        method,
        law=law,
        law_parameter=law_parameter,
        rescale=rescale,
        mixture=mixture,
        refit=refit,
    )
    start = time.perf_counter()
    wanted = pattern_sparsity(pattern, given(sparsity), float(DEFAULT_SPARSITY))
    spectral_kernels.check_weight(weight)
    if isinstance(weight, torch.Tensor):
        as_tensor(weight)  # refuses a sparse layout
    moments = None if inputs is None else moments_of(weight, inputs)
    if chosen.needs_inputs and moments is None:
        raise ValueError(f"refit: {refit!r} needs calibration inputs; got inputs=None")
    _check_bias_correction(bias_correction, moments)
    if moments is not None and bias_correction:
        moments = moments.deviations()
    used_rank, factors, weights = spectral_score(weight, chosen, rank, wanted, moments)
    sparse = spectral_kernels.sparsify(
        weight,
        sparsity=wanted,
        law=chosen.law,
        law_parameter=chosen.law_parameter,
        rescale=chosen.rescale,
        score=chosen.score,
        factors=factors,
        mixture=weights,
        column=None if moments is None else moments.host_scale(),
        group=group,
        pattern=pattern,
        seed=seed,
        stream=stream,
    )
    nnz, shift = sparse.nnz, None
    if chosen.refit is not None:
        budget = Budget(wanted, group, pattern) if chosen.refit_chooses else None
        values = as_tensor(sparse.weight)
        found = refitted(
            chosen.refit, as_matrix(weight), values.reshape(len(values), -1), moments, budget
        )
        values.copy_(found.reshape(values.shape))
        nnz = int(torch.count_nonzero(values))
    if moments is not None and bias_correction:
        shift = bias_shift(as_matrix(weight), as_matrix(sparse.weight), moments)
    report = made_report(
        weight, sparse, chosen, wanted, nnz, time.perf_counter() - start,
        rank=used_rank, group=group, pattern=pattern,
    )  # fmt: skip
    return Sparsified(sparse.weight, report, shift)


def made_report(
    weight: Any,
    sparse: spectral_kernels.Sparse,
    chosen: Method,
    wanted: float,
    nnz: int,
    seconds: float,
    *,
    rank: int | None = None,
    group: str = "tensor",
    pattern: str | None = None,
) -> SparsifyReport:
    """The report of what the kernels made of a weight; the nonzeros are those after a refit."""
    size = math.prod(weight.shape)
    return SparsifyReport(
        method=chosen.name,
        law=chosen.law,
        rescale=chosen.rescale,
        rank=rank,
        group=group,
        requested=float(wanted),
        pattern=pattern,
        sparsity=1.0 - nnz / size,
        nnz=nnz,
        size=size,
        c=sparse.c,
        seconds=seconds,
        _pair=(weight, sparse.weight),
    )


def spectral_score(
    weight: Any, method: Method, rank: int | None, sparsity: float, moments: Moments | None = None
) -> tuple[int | None, tuple[Any, Any] | None, tuple[float, float]]:
    """(rank, factors U_k S_k and V_k^T, mixture weights) of a method's score.

    With moments, spectral scores are of A D, where D = diag(rms). The column vector of the scores
    multiplies B by D, so that B here is the truncated A D times D^-1; in A * B it multiplies A.
    """
    matrix = as_matrix(weight)
    smaller = min(matrix.shape)
    if rank is not None:
        rank = check_rank(rank, smaller)
    spectral_kernels.entries_to_keep(matrix.numel(), sparsity)
    if not method.needs_low_rank:
        return None, None, (0.0, 0.0)
    if rank is None:
        rank = max(1, round(DEFAULT_RANK_SHARE * smaller))
    scale = None
    if moments is not None:
        matrix = matrix if matrix.dtype == torch.float64 else matrix.float()
        scale = moments.scale.to(matrix)
        matrix = matrix * scale
    U, S, Vh = randomized_svd(matrix, rank)[:3]
    if method.score == "aligned":  # A * B would leave float32's range where A and B are far from 1
        S = S * _to_unit(float(S[0])) * _to_unit(largest_magnitude(matrix))
    weights = (1.0, 1.0)  # of a zero matrix, where any do
    if method.score == "mixture":
        low, full = float(torch.linalg.vector_norm(S.double())), frobenius_norm(matrix)
        if full > 0.0 and low > 0.0:
            weights = (math.sqrt(1.0 - method.mixture) / low, math.sqrt(method.mixture) / full)
    if scale is not None and method.score != "aligned":
        Vh = torch.where(scale > 0.0, Vh / scale, 0.0)
    return rank, ((U * S).contiguous(), Vh.contiguous()), weights


def _to_unit(value: float) -> float:
    """The power of two that brings a positive value into [1/2, 1); 1 for 0."""
    return math.ldexp(1.0, -math.frexp(value)[1]) if value > 0.0 else 1.0


def moments_of(weight: Any, inputs: Any) -> Moments:
    """The moments of calibration inputs for a weight; those that come as moments are checked."""
    n = math.prod(weight.shape[1:])
    if not isinstance(inputs, Moments):
        return Moments.of(inputs, n).to(as_tensor(weight).device)
    if tuple(inputs.second.shape) != (n, n):
        raise ValueError(f"inputs: expected moments ({n}, {n}); got {tuple(inputs.second.shape)}")
    return inputs


def _check_bias_correction(bias_correction: Any, moments: Moments | None) -> None:
    if not isinstance(bias_correction, bool):
        raise TypeError(f"bias_correction: expected True or False; got {bias_correction!r}")
    if bias_correction and moments is None:
        raise ValueError("bias_correction: needs calibration inputs; got inputs=None")
