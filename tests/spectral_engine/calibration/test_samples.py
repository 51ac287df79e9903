"""Samples of very many positions, and what a calibration says it will take."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import spectral_engine as se
from spectral_engine.calibration import stages
from spectral_engine.calibration.positions import Sample, rows_taken
from tests.support.calibration_cases import Mlp, by_row, seeded


@given(rows=st.integers(1, 5000), wanted=st.integers(1, 400))
def test_samples_are_spread_over_all_rows(rows, wanted):
    """Catches more samples than asked, ends that are never drawn, rows that are drawn twice."""
    taken = Sample("layer", rows, wanted).of(rows)
    if rows <= wanted:
        assert taken is None
        return
    assert 1 <= len(taken) <= wanted
    assert len(taken) >= wanted - max(2, wanted * wanted // rows)  # neighbours may round to one
    assert bool((taken[1:] > taken[:-1]).all())
    assert 0 <= int(taken[0]) < 2 * rows / wanted
    assert rows - 2 * rows / wanted - 1 <= int(taken[-1]) < rows


def test_every_row_is_drawn_alike():
    """Catches a sample that falls into step with the columns of an image."""
    sample, counts = Sample("layer", 64, 16), torch.zeros(64)
    for _ in range(3000):
        counts[sample.of(64)] += 1
    # 3000 draws of probability 1/4: five and a half deviations are 1e-6 over 64 rows.
    assert float((counts - 750).abs().max()) < 5.5 * (3000 * 0.25 * 0.75) ** 0.5


def test_rows_that_do_not_count_are_not_drawn():
    """Catches numbers of rows counted among those that count, and weights of other rows."""
    weights = torch.zeros(100)
    weights[1::2] = torch.arange(1.0, 51.0)
    index, chosen = rows_taken(weights, 100, Sample("layer", 50, 10), torch.device("cpu"))
    assert len(index) == len(chosen) == 10
    assert bool((index % 2 == 1).all())
    assert torch.equal(chosen, (index + 1) / 2)


@pytest.mark.parametrize(
    ("build", "shape", "rows"),
    [
        (lambda: nn.Conv2d(2, 4, 3, padding=1, groups=2), (6, 2, 20, 20), 2400),
        (lambda: nn.ConvTranspose1d(2, 4, 3, stride=2), (6, 2, 100), 1206),
        (lambda: nn.Linear(20, 4), (6, 100, 20), 600),
    ],
)
def test_layers_are_calibrated_on_samples(build, shape, rows):
    """Catches moments of a sample that are not those of all, and runs that differ."""
    model = nn.Sequential(seeded(build))
    batches = [torch.randn(shape) for _ in range(3)]
    name = "0.weight"
    every = se.calibrate(model, batches, max_samples=None).moments[name]
    assert every.count == 3 * rows
    some = se.calibrate(model, batches, max_samples=400).moments[name]
    again = se.calibrate(model, batches, max_samples=400).moments[name]
    assert 390 <= some.count <= 405
    assert torch.equal(some.second, again.second)
    # An entry of E[x x^T] of 400 samples is off by less than 6 / sqrt(400) for normal inputs.
    assert float((some.second - every.second).abs().max()) < 6 * 2**0.5 / 20


def test_dense_and_pruned_model_give_the_same_samples():
    """Catches pairs of other rows: refits to outputs that belong to other inputs."""
    torch.manual_seed(0)
    data = [torch.randn(200, 8) for _ in range(4)]

    def error(**options) -> float:
        model, dense = Mlp(24), Mlp(24)
        calibration = se.Calibration(data, sequential=True, **options)
        se.prune(model, by_row(0.5, se.LeastSquares()), calibration=calibration)
        with torch.no_grad():
            return float((model(data[0]) - dense(data[0])).square().mean())

    assert error(asymmetric=True, max_samples=300) < 1.2 * error(max_samples=300)


def test_what_takes_long_is_said_before(monkeypatch):
    """Catches a calibration that runs for minutes without a word, and one that warns in vain."""
    monkeypatch.setattr(stages, "_rate", lambda: 1e9)
    monkeypatch.setattr(stages, "_SLOWEST", 1e9)
    model = nn.Sequential(nn.Conv2d(64, 2, 3, padding=1), nn.Conv2d(2, 2, 1))
    data = torch.randn(1, 64, 8, 8)
    se.calibrate(model, [data])
    monkeypatch.setattr(stages, "LONG", 0.01)
    with pytest.warns(
        UserWarning, match=r"the longest sums of layers: 0.weight .*64 samples of 576 feat"
    ):
        se.calibrate(model, [data])
