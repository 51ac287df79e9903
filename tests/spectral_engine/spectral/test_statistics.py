"""What is read off a spectrum, against closed forms and planted truths."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from spectral_engine.spectral import power_law as power_law_module
from spectral_engine.spectral.power_law import power_law
from spectral_engine.spectral.statistics import (
    effective_rank,
    energy_ranks,
    estimated_statistics,
    marchenko_pastur_median,
    statistics,
    with_density,
)


def whole(values: np.ndarray, shape: tuple[int, int], resolution: float = 1e-12):
    return statistics(values, shape, float(np.linalg.norm(values)), resolution)


@given(n=st.integers(1, 400), scale=st.sampled_from([1e-20, 1.0, 1e20]))
@settings(max_examples=40)
def test_equal_values(n: int, scale: float) -> None:
    """Catches an entropy in bits or of squares, an energy rank off by one, a missing scale."""
    found = whole(np.full(n, scale), (n, n), 1e-9 * scale)
    assert found.effective_rank == pytest.approx(n)
    assert found.stable_rank == pytest.approx(n)
    assert found.condition == pytest.approx(1.0)
    assert found.rank_90 == -(-9 * n // 10)
    assert found.rank_95 == -(-19 * n // 20)
    assert found.rank_99 == -(-99 * n // 100)


def test_one_value_among_zeros() -> None:
    """Catches 0 log 0, and a condition made up out of rounding where sigma_min is lost."""
    found = whole(np.array([3.0, 0.0, 0.0, 0.0]), (4, 9), 0.003)
    assert (found.effective_rank, found.stable_rank) == (1.0, 1.0)
    assert (found.rank_90, found.rank_99) == (1, 1)
    assert found.condition == pytest.approx(1000.0)
    assert found.estimated == ("condition",)
    assert found.noise is None
    assert found.above_edge is None
    assert found.power_law is None


def test_zero_matrix() -> None:
    """Catches a division by sigma_1 = 0."""
    found = whole(np.zeros(20), (20, 30))
    assert (found.spectral, found.stable_rank, found.effective_rank) == (0.0, 0.0, 0.0)
    assert (found.rank_90, found.rank_99) == (0, 0)
    assert found.condition is None
    assert found.power_law is None


@given(
    values=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=60),
    share=st.floats(0.05, 0.999),
)
@settings(max_examples=60)
def test_energy_rank_is_the_first_that_holds_the_share(values: list[float], share: float) -> None:
    """Catches an interpolated rank that rounds to the nearest instead of up."""
    sigma = np.sort(values)[::-1]
    held = np.cumsum(sigma**2) / np.sum(sigma**2)
    rank = energy_ranks(sigma, np.ones_like(sigma), [share])[0]
    assert held[rank - 1] >= share - 1e-8
    assert rank == 1 or held[rank - 2] < share + 1e-8


@pytest.mark.parametrize("beta", [0.02, 0.3, 0.8, 1.0])
def test_marchenko_pastur_median_halves_the_law(beta: float) -> None:
    """Catches a wrong density or a grid too coarse: half the mass lies below the median."""
    low, high = (1 - beta**0.5) ** 2, (1 + beta**0.5) ** 2
    mass, _ = quad(
        lambda x: np.sqrt((high - x) * (x - low)) / (2 * np.pi * beta * x),
        low,
        marchenko_pastur_median(beta),
    )
    assert mass == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("shape", [(400, 400), (1200, 300), (250, 900)])
def test_edge_of_noise_and_planted_spikes(shape: tuple[int, int]) -> None:
    """Catches an edge for variances instead of deviations, for one side only, or one that the
    spikes themselves push up (as a noise level from ||W||_F would be).
    """
    m, n = shape
    generator = np.random.default_rng(1)
    noise = 0.3 * generator.standard_normal(shape)
    edge = 0.3 * (m**0.5 + n**0.5)
    found = whole(np.linalg.svd(noise, compute_uv=False), shape)
    assert found.noise == pytest.approx(0.3, rel=0.02)
    assert found.edge == pytest.approx(edge, rel=0.02)
    assert found.above_edge <= 1
    U, V = (np.linalg.qr(generator.standard_normal((size, 7)))[0] for size in shape)
    spiked = noise + (U * np.linspace(3, 20, 7) * edge) @ V.T
    found = whole(np.linalg.svd(spiked, compute_uv=False), shape)
    assert found.above_edge == 7
    assert found.noise == pytest.approx(0.3, rel=0.03)


@pytest.mark.parametrize("alpha", [1.8, 2.5, 4.0])
def test_power_law_exponent_is_recovered(alpha: float) -> None:
    """Catches an exponent of sigma instead of sigma^2 (twice as large, less one), alpha - 1, or an
    x_min in the bulk: a Pareto tail above a uniform bulk is found, within four standard errors.
    """
    generator = np.random.default_rng(5)
    tail = (1 - generator.random(3000)) ** (-1 / (alpha - 1))
    bulk = generator.random(1000) ** 0.5
    law = power_law(np.sort(np.concatenate([tail, bulk]))[::-1])
    assert law is not None
    assert abs(law.alpha - alpha) < 4 * law.alpha_error
    assert law.alpha_error == pytest.approx((law.alpha - 1) / law.tail**0.5)
    assert law.x_min > 0.9
    assert law.distance < 0.03


@given(exponent=st.sampled_from([-60, 0, 60]), seed=st.integers(0, 50))
@settings(max_examples=20)
def test_power_law_is_that_of_the_definition(exponent: int, seed: int) -> None:
    """Catches the fast form (suffix sums, chunks) departing from the written formulas, and a fit
    that depends on the units.
    """
    x = np.sort(np.random.default_rng(seed).pareto(1.5, 60) + 0.5)[::-1] * 10.0**exponent
    law = power_law(x)
    best = (np.inf, 0.0, 0)
    for count in range(10, len(x) + 1):
        tail = x[:count][::-1]
        alpha = 1 + count / np.sum(np.log(tail / tail[0]))
        cdf = 1 - (tail / tail[0]) ** (1 - alpha)
        distance = max(
            np.max(np.abs(cdf - np.arange(count) / count)),
            np.max(np.abs(cdf - np.arange(1, count + 1) / count)),
        )
        best = min(best, (distance, alpha, count))
    assert law is not None
    assert (law.distance, law.alpha, law.tail) == pytest.approx(best)


def test_power_law_needs_a_tail() -> None:
    """Catches a fit to nine values, to equal values (infinite exponent) or to zeros."""
    assert power_law(np.arange(9.0, 0.0, -1.0)) is None
    assert power_law(np.ones(50)) is None
    assert power_law(np.concatenate([np.arange(9.0, 0.0, -1.0), np.zeros(50)])) is None
    assert power_law(np.arange(10.0, 0.0, -1.0)) is not None


def test_density_below_the_leading_values() -> None:
    """Catches a rest that does not hold the count and the energy that the leading values leave."""
    sigma = np.linspace(10, 1, 200)
    norm = float(np.linalg.norm(sigma))
    generator = np.random.default_rng(0)
    nodes, weights = generator.permutation(sigma[::2]), np.full(100, 0.01)
    values, counts = with_density(sigma[:20], nodes, weights, 200, norm)
    assert (values[:20] == sigma[:20]).all()
    assert (np.diff(values) <= 0).all()
    assert counts.sum() == pytest.approx(200)
    assert np.sum(counts * values**2) == pytest.approx(norm**2)
    assert effective_rank(values, counts) == pytest.approx(effective_rank(sigma), rel=0.02)


def test_estimates_are_named() -> None:
    """Catches an estimate passed off as known, and a rank called estimated that is not."""
    sigma = np.concatenate([np.linspace(50, 40, 30), np.linspace(1, 0.1, 270)])
    norm = float(np.linalg.norm(sigma))
    nodes, weights = sigma, np.full(300, 1 / 300)
    found = estimated_statistics(sigma[:30], nodes, weights, (300, 500), norm)
    exact = whole(sigma, (300, 500))
    assert {"effective_rank", "noise", "edge", "above_edge", "power_law"} <= {*found.estimated}
    assert "rank_99" not in found.estimated
    assert (found.rank_90, found.rank_99) == (exact.rank_90, exact.rank_99)
    assert found.condition is None
    assert found.stable_rank == exact.stable_rank
    flat = estimated_statistics(sigma[30:40], nodes, weights, (300, 500), norm)
    assert "rank_90" in flat.estimated


def test_a_coarse_search_finds_the_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches candidates between those tried first never tried, a place among the thinned ones
    taken for one among all, and the exponent of another candidate.
    """
    generator = np.random.default_rng(6)
    x = np.concatenate([(1 - generator.random(900)) ** (-1 / 1.5), generator.random(900) ** 0.5])
    x = np.sort(x)[::-1]
    exact = power_law(x)
    monkeypatch.setattr(power_law_module, "_CANDIDATES", 100)
    coarse = power_law(x)
    assert coarse is not None
    assert coarse.distance == pytest.approx(exact.distance, rel=0.1)
    excess = np.log(x[: coarse.tail] / coarse.x_min).sum()
    assert coarse.alpha == pytest.approx(1 + coarse.tail / excess)
    assert coarse.x_min == x[coarse.tail - 1]
