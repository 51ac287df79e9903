"""What is read off a spectrum: norms, ranks, the Marchenko-Pastur edge and the power-law tail.

A spectrum is a list of singular values with counts. Where a matrix was factored whole every count
is 1; where it was too large for that, the leading values are known and the rest is a density, of
fractional counts (`with_density`): what is read off the rest is then an estimate, and is listed as
such in `Statistics.estimated`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from spectral_engine.spectral.power_law import PowerLaw, Values, power_law


@dataclass(frozen=True)
class Statistics:
    """What is read off the spectrum of one matrix (m, n) with singular values sigma_i, descending.

    A block-diagonal matrix has the values of all its blocks, and m and n are of one block.

    spectral, frobenius: ||W||_2 = sigma_1 and ||W||_F
    stable_rank: ||W||_F^2 / ||W||_2^2
    effective_rank: exp of the entropy of p_i = sigma_i / sum sigma (Roy and Vetterli, EUSIPCO 2007)
    rank_90, rank_95, rank_99: the fewest leading values that hold this share of ||W||_F^2
    noise: standard deviation of the entries of a Gaussian noise matrix with the same median
        singular value (Gavish and Donoho, arXiv 1305.5870, section III.E); None where the median
        is zero to rounding
    edge: the Marchenko-Pastur edge noise (sqrt(m) + sqrt(n)), above which noise has no values
    above_edge: the number of singular values above the edge; the largest value of pure noise
        lies above it about one time in six, by a relative n^(-2/3) (Tracy and Widom)
    power_law: the fit of the tail; None with fewer than 10 values
    condition: sigma_1 / sigma_min; None for a zero matrix and where sigma_min is not known
    estimated: the names of those above that are estimates; an estimated condition is the least
        that it can be, an estimated power_law has its x_min among the leading values

    >>> import torch, spectral_engine as se
    >>> model = torch.nn.ParameterDict({"w": torch.diag(torch.tensor([4.0, 2.0, 2.0]))})
    >>> found = se.spectra(model)["w"].statistics
    >>> round(found.stable_rank, 3), round(found.condition, 3), found.rank_90
    (1.5, 2.0, 3)
    """

    spectral: float
    frobenius: float
    stable_rank: float
    effective_rank: float
    rank_90: int
    rank_95: int
    rank_99: int
    noise: float | None
    edge: float | None
    above_edge: int | None
    power_law: PowerLaw | None
    condition: float | None
    estimated: tuple[str, ...] = ()


def statistics(
    values: Values, shape: tuple[int, int], frobenius: float, resolution: float
) -> Statistics:
    """The statistics of a matrix of which all singular values are known.

    Args:
        values: all of them, descending.
        shape: (m, n) of the matrix, or of each of the blocks on its diagonal: the noise of its
            entries shows in a block.
        frobenius: ||W||_F.
        resolution: how well the smallest values are known, in their units. A sigma_min below it is
            not known, and the condition is estimated from below.

    Returns:
        The statistics; only the condition may be an estimate.
    """
    condition: float | None = None
    estimated: tuple[str, ...] = ()
    if values[0] > 0.0:
        condition = float(values[0]) / max(float(values[-1]), resolution)
        if values[-1] < resolution:
            estimated = ("condition",)
    counts = np.ones_like(values)
    law = power_law(values**2)
    return _read_off(values, counts, shape, frobenius, resolution, law, condition, estimated)


def estimated_statistics(
    leading: Values, nodes: Values, weights: Values, shape: tuple[int, int], frobenius: float,
    blocks: int = 1,
) -> Statistics:  # fmt: skip
    """The statistics of a matrix of which the leading values and a density of all are known.

    Args:
        leading: the leading singular values, descending.
        nodes, weights: the density of all (`spectral_kernels.spectra.spectral_density`); the
            weights have sum 1.
        shape: (m, n), of each of the blocks on the diagonal.
        frobenius: ||W||_F.
        blocks: how many there are.

    Returns:
        The statistics, with the names of those that are estimates.
    """
    values, counts = with_density(leading, nodes, weights, blocks * min(shape), frobenius)
    law = power_law(leading**2)
    energy = np.cumsum(leading**2)
    known = {
        f"rank_{share}": bool(energy[-1] >= share / 100 * frobenius**2) for share in (90, 95, 99)
    }
    estimated = (
        "effective_rank", *(name for name, is_known in known.items() if not is_known),
        "noise", "edge", "above_edge", "power_law",
    )  # fmt: skip
    return _read_off(values, counts, shape, frobenius, 0.0, law, None, estimated)


def with_density(
    leading: Values, nodes: Values, weights: Values, count: int, frobenius: float
) -> tuple[Values, Values]:
    """The leading values, then a density of the others with their count and their energy.

    The density below the last leading value is scaled to hold count - len(leading) values, and its
    nodes to hold what the leading ones leave of ||W||_F^2, which is known exactly.
    """
    rest = count - len(leading)
    energy = max(frobenius**2 - float(np.sum(leading**2)), 0.0)
    below = (nodes < leading[-1]) & (weights > 0.0)
    nodes, weights = nodes[below], weights[below]
    if rest == 0 or len(nodes) == 0:
        nodes, weights = np.ones(min(rest, 1)), np.ones(min(rest, 1))
    order = np.argsort(nodes)[::-1]
    nodes, counts = nodes[order], weights[order] * (rest / max(float(weights.sum()), 1e-300))
    found = float(np.sum(counts * nodes**2))
    if found > 0.0:
        nodes = np.minimum(nodes * math.sqrt(energy / found), leading[-1])
    return np.concatenate([leading, nodes]), np.concatenate([np.ones_like(leading), counts])


def _read_off(
    values: Values, counts: Values, shape: tuple[int, int], frobenius: float, resolution: float,
    law: PowerLaw | None, condition: float | None, estimated: tuple[str, ...],
) -> Statistics:  # fmt: skip
    """What follows from descending values and their counts."""
    first = float(values[0])
    noise = noise_level(values, counts, shape)
    if noise is not None and _median(values, counts) <= resolution:
        noise = None
    edge = None if noise is None else marchenko_pastur_edge(noise, shape)
    ranks = energy_ranks(values, counts, (0.90, 0.95, 0.99))
    return Statistics(
        spectral=first,
        frobenius=frobenius,
        stable_rank=(frobenius / first) ** 2 if first > 0.0 else 0.0,
        effective_rank=effective_rank(values, counts),
        rank_90=ranks[0],
        rank_95=ranks[1],
        rank_99=ranks[2],
        noise=noise,
        edge=edge,
        above_edge=None if edge is None else round(float(counts[values > edge].sum())),
        power_law=law,
        condition=condition,
        estimated=estimated,
    )


def effective_rank(values: Values, counts: Values | None = None) -> float:
    """exp(-sum p_i log p_i) with p_i = sigma_i / sum sigma; 0 for a zero matrix."""
    counts = np.ones_like(values) if counts is None else counts
    total = float(np.sum(counts * values))
    if total == 0.0:
        return 0.0
    positive = values > 0.0
    p = values[positive] / total
    return math.exp(-float(np.sum(counts[positive] * p * np.log(p))))


def energy_ranks(values: Values, counts: Values, shares: Sequence[float]) -> list[int]:
    """The fewest leading values that hold each share of the sum of all sigma^2; 0 of nothing."""
    if values[0] == 0.0:
        return [0] * len(shares)
    # At unit scale, where squares neither overflow nor vanish.
    energies = counts * (values / values[0]) ** 2
    held = np.concatenate([[0.0], np.cumsum(energies)])
    many = np.concatenate([[0.0], np.cumsum(counts)])
    wanted = np.array(shares) * held[-1]
    # A hair less than the share: a sum of equal values must not miss its tenth by rounding.
    return [math.ceil(x - 1e-9) for x in np.interp(wanted * (1 - 1e-12), held, many)]


def _median(values: Values, counts: Values) -> float:
    """The median of descending values with counts."""
    middle = np.cumsum(counts) - 0.5 * counts
    return float(np.interp(0.5 * counts.sum(), middle, values))


def noise_level(values: Values, counts: Values, shape: tuple[int, int]) -> float | None:
    """Standard deviation of the noise by the median singular value; None where that is zero.

    sigma = median / sqrt(max(m, n) mu), mu the median of the Marchenko-Pastur law. Few large
    values (the signal) do not move a median, as they move ||W||_F.

    Source: Gavish and Donoho, "The optimal hard threshold for singular values is 4/sqrt(3)", IEEE
    Trans. Inf. Theory 60 (2014), arXiv 1305.5870.
    """
    median = _median(values, counts)
    larger = max(shape)
    if median <= 0.0:
        return None
    return median / math.sqrt(larger * marchenko_pastur_median(min(shape) / larger))


def marchenko_pastur_edge(noise: float, shape: tuple[int, int]) -> float:
    """Where the singular values of an m x n matrix of independent entries of this deviation end."""
    return noise * (math.sqrt(shape[0]) + math.sqrt(shape[1]))


@lru_cache(maxsize=256)
def marchenko_pastur_median(beta: float) -> float:
    """The median of the Marchenko-Pastur law of ratio `beta` in (0, 1] and unit variance.

    The density sqrt((b - x)(x - a)) / (2 pi beta x) on [a, b] = (1 -+ sqrt(beta))^2 is integrated
    over an angle, x = c - r cos t, where it is smooth.
    """
    r, c = 2.0 * math.sqrt(beta), 1.0 + beta
    edges = np.linspace(0.0, math.pi, 20_001)
    t = 0.5 * (edges[1:] + edges[:-1])
    mass = (r * np.sin(t)) ** 2 / (c - r * np.cos(t))
    share = np.concatenate([[0.0], np.cumsum(mass)])
    return float(c - r * np.cos(np.interp(0.5 * share[-1], share, edges)))
