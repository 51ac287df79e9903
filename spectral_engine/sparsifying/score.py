"""The spectral scores: the low rank B of a matrix, in the form that the kernels take."""

import math
from typing import Any, NamedTuple

import torch
from spectral_kernels.spectra import randomized_svd

from spectral_engine.matrix.arrays import as_matrix, frobenius_norm, largest_magnitude
from spectral_engine.matrix.moments import Moments
from spectral_engine.recipe.methods import Method

#: The rank of B where none is given, as a share of min(m, n).
DEFAULT_RANK_SHARE = 0.5


class SpectralScore(NamedTuple):
    """rank k of B, its factors U_k S_k (m, k) and V_k^T (k, n), and the weights of a mixture."""

    rank: int | None = None
    factors: tuple[torch.Tensor, torch.Tensor] | None = None
    mixture: tuple[float, float] = (0.0, 0.0)


def spectral_score(weight: Any, method: Method, moments: Moments | None = None) -> SpectralScore:
    """What the kernels need for a method's score; nothing where that is the magnitude.

    A rank over min(m, n) is cut to it. With moments the score is of A D, where D = diag(rms) of the
    inputs. The kernels multiply every score by D, so that B here is the truncated A D times D^-1;
    in A * B they multiply A.
    """
    if not method.needs_low_rank:
        return SpectralScore()
    matrix = as_matrix(weight)
    smaller = min(matrix.shape)
    rank = max(1, round(DEFAULT_RANK_SHARE * smaller))
    rank = rank if method.rank is None else min(method.rank, smaller)
    scale = None
    if moments is not None:
        matrix = matrix if matrix.dtype == torch.float64 else matrix.float()
        scale = moments.scale.to(matrix)
        matrix = matrix * scale
    U, S, Vh = randomized_svd(matrix, rank)[:3]
    if method.score == "aligned":  # A * B would leave float32's range where A and B are far from 1
        S = S * _to_unit(float(S[0])) * _to_unit(largest_magnitude(matrix))
    mixture = (1.0, 1.0)  # of a zero matrix, where any do
    if method.score == "mixture":
        low, full = float(torch.linalg.vector_norm(S.double())), frobenius_norm(matrix)
        if full > 0.0 and low > 0.0:
            mixture = (math.sqrt(1.0 - method.mixture) / low, math.sqrt(method.mixture) / full)
    if scale is not None and method.score != "aligned":
        Vh = torch.where(scale > 0.0, Vh / scale, 0.0)
    return SpectralScore(rank, ((U * S).contiguous(), Vh.contiguous()), mixture)


def _to_unit(value: float) -> float:
    """The power of two that brings a positive value into [1/2, 1); 1 for 0."""
    return math.ldexp(1.0, -math.frexp(value)[1]) if value > 0.0 else 1.0
