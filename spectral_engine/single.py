"""Sparsify one matrix: the engine's front door to the kernels."""

import math
import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import spectral_kernels
import torch
from numpy.typing import NDArray
from spectral_kernels.norms import spectral_norm
from spectral_kernels.svd import randomized_svd

from spectral_engine.errors import Errors, errors
from spectral_engine.matrices import (
    as_matrix,
    as_tensor,
    check_rank,
    frobenius_norm,
    largest_magnitude,
)
from spectral_engine.methods import Method, resolve

#: The rank of a spectral score where none is given, as a share of min(m, n).
DEFAULT_RANK_SHARE = 0.5


@dataclass
class SparsifyReport:
    """What was done to one matrix, and how well it went.

    sparsity is the fraction of zeros reached, `requested` the one asked for; c is that of
    p = min(1, c g(s)), or the threshold; rank is that of the score, None if it needs none.
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
        }


@dataclass(frozen=True)
class Sparsified:
    """A sparsified array; `weight` has the kind, dtype, shape and device of the input."""

    weight: Any
    report: SparsifyReport

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
    sparsity: float = 0.9,
    *,
    rank: int | None = None,
    law: str | None = None,
    law_parameter: float | None = None,
    rescale: bool | None = None,
    mixture: float | None = None,
    refit: str | None = None,
    inputs: Any = None,
    seed: int = 0,
    stream: int = 0,
    group: str = "tensor",
) -> Sparsified:
    """A sparse copy of `weight` with nearly its spectrum.

    Args:
        weight: NumPy array, torch tensor (CPU or CUDA) or CuPy array of two or more dimensions,
            float16, bfloat16, float32 or float64; seen as the matrix (shape[0], -1).
        method: "magnitude", "randomized", "principal" or "aligned"; see `methods`.
        sparsity: fraction of zeros, in [0, 1). Exact where the method keeps the largest; where it
            draws, the expected count is within 1e-3 and the count itself within sampling noise.
        rank: of B for "principal" and "aligned"; by default half of min(m, n).
        law, law_parameter, rescale: override the method's own; laws are in
            `spectral_kernels.laws`, with formulas and sources.
        mixture: for "principal", the magnitude's share t (by default 1/2, see `methods`) in
            s^2 = (1 - t) B^2 / ||B||_F^2 + t A^2 / ||A||_F^2.
        refit: None, or "scale": the kept entries times the one scalar that restores sigma_1.
        inputs: calibration inputs (..., n) of the layer; each score is multiplied by the root
            mean square of its input feature, which makes "magnitude" by row into Wanda
            (arXiv 2306.11695).
        seed, stream: the draws of tensor `stream` under `seed`; the same bits on every backend.
        group: "tensor", or "row" to give every row the same sparsity.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.
    """
    chosen = resolve(
        method,
        law=law,
        law_parameter=law_parameter,
        rescale=rescale,
        mixture=mixture,
        refit=refit,
    )
    start = time.perf_counter()
    spectral_kernels.check_weight(weight)
    if isinstance(weight, torch.Tensor):
        as_tensor(weight)  # refuses a sparse layout
    used_rank, factors, weights = spectral_score(weight, chosen, rank, sparsity)
    sparse = spectral_kernels.sparsify(
        weight,
        sparsity=sparsity,
        law=chosen.law,
        law_parameter=chosen.law_parameter,
        rescale=chosen.rescale,
        score=chosen.score,
        factors=factors,
        mixture=weights,
        column=None if inputs is None else input_scale(weight, inputs),
        group=group,
        seed=seed,
        stream=stream,
    )
    nnz = sparse.nnz
    if chosen.refit == "scale":
        nnz = _match_first_value(weight, sparse.weight)
    size = math.prod(weight.shape)
    report = SparsifyReport(
        method=method,
        law=chosen.law,
        rescale=chosen.rescale,
        rank=used_rank,
        group=group,
        requested=float(sparsity),
        sparsity=1.0 - nnz / size,
        nnz=nnz,
        size=size,
        c=sparse.c,
        seconds=time.perf_counter() - start,
        _pair=(weight, sparse.weight),
    )
    return Sparsified(sparse.weight, report)


def spectral_score(
    weight: Any, method: Method, rank: int | None, sparsity: float
) -> tuple[int | None, tuple[Any, Any] | None, tuple[float, float]]:
    """(rank, factors U_k S_k and V_k^T, mixture weights) of a method's score."""
    matrix = as_matrix(weight)
    smaller = min(matrix.shape)
    if rank is not None:
        rank = check_rank(rank, smaller)
    spectral_kernels.entries_to_keep(matrix.numel(), sparsity)
    if not method.needs_low_rank:
        return None, None, (0.0, 0.0)
    if rank is None:
        rank = max(1, round(DEFAULT_RANK_SHARE * smaller))
    U, S, Vh = randomized_svd(matrix, rank)[:3]
    weights = (1.0, 1.0)  # of a zero matrix, where any do
    if method.score == "mixture":
        low, full = float(torch.linalg.vector_norm(S.double())), frobenius_norm(matrix)
        if full > 0.0 and low > 0.0:
            weights = (math.sqrt(1.0 - method.mixture) / low, math.sqrt(method.mixture) / full)
    return rank, ((U * S).contiguous(), Vh.contiguous()), weights


def input_scale(weight: Any, inputs: Any) -> NDArray[np.float32]:
    """Root mean square of each of the n input features over calibration inputs (..., n)."""
    n = math.prod(weight.shape[1:])
    samples = as_tensor(inputs, "inputs")
    if samples.ndim == 0 or samples.shape[-1] != n:
        raise ValueError(f"inputs: expected shape (..., {n}); got {tuple(samples.shape)}")
    features = samples.reshape(-1, n).double()
    if features.shape[0] == 0 or not bool(torch.isfinite(features).all()):
        raise ValueError("inputs: expected at least one sample, all finite")
    scale: NDArray[np.float32] = features.square().mean(0).sqrt().float().cpu().numpy()
    if not np.isfinite(scale).all():
        raise ValueError("inputs: expected a root mean square that fits float32; got more")
    return scale


def _match_first_value(weight: Any, sparse: Any) -> int:
    """Scale `sparse` in place so that its sigma_1 is the original's; the nonzeros it then has."""
    tensor = as_tensor(sparse)
    before = float(spectral_norm(as_matrix(weight)).value)
    after = float(spectral_norm(as_matrix(tensor)).value)
    if after > 0.0:
        scale = before / after
        if largest_magnitude(tensor) * scale > torch.finfo(tensor.dtype).max:
            raise ValueError(
                f"refit: entries times {scale:.4g}, which restores the largest singular value, "
                f"overflow {tensor.dtype}; use refit=None, or a wider dtype"
            )
        tensor *= scale
    return int(torch.count_nonzero(tensor))
