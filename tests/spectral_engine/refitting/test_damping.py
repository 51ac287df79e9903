"""The damping of the refits, with and without input features that outweigh all others."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import spectral_engine as se
from spectral_engine.matrix.moments import Moments
from spectral_engine.refitting import damping
from spectral_engine.refitting.damping import damping_level

REFITS = [se.LeastSquares(), se.SparseGPT(), se.ALPS()]


def problem(n: int, samples: int, outliers: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """A weight and correlated inputs of it, some features of which are 1000 times as large."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(n, n, generator=generator) / n**0.5 + 0.5 * torch.eye(n)
    inputs = torch.randn(samples, n, generator=generator) @ mixing
    inputs[:, 3 : 3 + outliers] *= 1000.0
    return torch.randn(48, n, generator=generator), inputs


def error(weight: torch.Tensor, inputs: torch.Tensor, refit: se.Refit) -> float:
    """The root mean square of what a refit by row changes in the outputs."""
    recipe = se.Recipe(budget=se.Uniform(0.5, group="row"), refit=refit)
    sparse = se.sparsify(weight, recipe, inputs=inputs).weight
    return float((inputs.double() @ (weight - sparse).double().T).square().mean().sqrt())


@pytest.mark.parametrize("refit", REFITS, ids=repr)
@pytest.mark.parametrize(("n", "samples", "outliers"), [(64, 512, 1), (64, 128, 4), (384, 2048, 1)])
def test_an_outlier_among_the_features_does_not_swamp_the_others(
    refit: se.Refit, n: int, samples: int, outliers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a damping by the mean of the moments' diagonal, which one feature 1000 times as large
    raises 2,500 to 70,000 times: the other features' entries are then hardly refitted (41 % more
    error by least squares, twice as much by ALPS).
    """
    weight, inputs = problem(n, samples, outliers)
    found = error(weight, inputs, refit)
    monkeypatch.setattr(damping, "MOST_MEDIANS", 1.0)  # the damping of the others, were they alone
    assert found < 1.1 * error(weight, inputs, refit)
    monkeypatch.setattr(damping, "MOST_MEDIANS", math.inf)
    assert found < 0.9 * error(weight, inputs, refit)


@given(n=st.integers(1, 40), dead=st.floats(0.0, 0.9), spread=st.floats(0.0, 1.0),
       seed=st.integers(0, 1000))  # fmt: skip
@settings(max_examples=60)
def test_without_outliers_the_level_is_the_mean_to_the_bit(
    n: int, dead: float, spread: float, seed: int
) -> None:
    """Catches a bound that acts on ordinary layers, dead features among them: results would move.

    Scales log-normal with a deviation of up to 1 have squares whose mean is at most e^2 medians,
    and those of up to .5 at most e^.5.
    """
    generator = torch.Generator().manual_seed(seed)
    scales = torch.exp(0.25 * spread * torch.randn(n, generator=generator))
    diagonal = scales.square() * (torch.rand(n, generator=generator) >= dead)
    assert damping_level(diagonal) == float(diagonal.mean())


def test_the_level_is_bounded_by_four_medians_of_what_is_not_zero() -> None:
    """Catches a median that dead features pull to 0, and with it the damping."""
    diagonal = torch.tensor([0.0] * 9 + [1.0, 1.0, 2.0, 1e6])
    assert damping_level(diagonal) == 4.0
    assert damping_level(torch.zeros(5)) == 0.0
    assert damping_level(torch.tensor([0.0, 3.0])) == 1.5


@pytest.mark.parametrize("refit", REFITS, ids=repr)
@pytest.mark.parametrize("seed", range(3))
def test_without_outliers_every_bit_stays(
    refit: se.Refit, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches other masks or values where no feature outweighs the others."""
    weight, inputs = problem(96, 256, 0, seed)
    recipe = se.Recipe(refit=refit)
    found = se.sparsify(weight, recipe, 0.7, inputs=inputs).weight
    monkeypatch.setattr(damping, "MOST_MEDIANS", math.inf)
    assert torch.equal(found, se.sparsify(weight, recipe, 0.7, inputs=inputs).weight)


def test_the_moments_of_an_outlier_are_still_factored() -> None:
    """Catches a level so small beside the largest moment that float32 cannot factor them."""
    weight, inputs = problem(64, 40, 1)  # fewer samples than features: singular
    moments = Moments.of(inputs, 64)
    assert moments.second.diagonal().max() > 1e4 * moments.second.diagonal().median()
    for refit in REFITS:
        sparse = se.sparsify(weight, se.Recipe(refit=refit), 0.5, inputs=inputs).weight
        assert bool(torch.isfinite(sparse).all())
        assert float(sparse.abs().max()) < 100.0
