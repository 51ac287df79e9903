"""Budgets that a draw misses."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import spectral_engine as se


def wide() -> np.ndarray:
    """Entries over 300 orders of magnitude, of which the scores, in float32, know a third."""
    return 10.0 ** np.random.default_rng(2).uniform(-300.0, 0.0, (24, 64))


def test_a_missed_budget_warns():
    """Catches a matrix, or a layer, that keeps half of what was asked for without a word."""
    with pytest.warns(
        se.SparsityMissed, match=r"shape \(24, 64\): \d+ entries .*768 were asked for"
    ):
        out = se.sparsify(wide(), "randomized", 0.5)
    assert out.report.missed
    assert out.report.to_dict()["missed"] is True
    model = nn.Sequential(nn.Linear(64, 24, dtype=torch.float64))
    model[0].weight.data.copy_(torch.from_numpy(wide()))
    with pytest.warns(se.SparsityMissed):
        report = se.prune(model, "randomized", 0.5)
    assert report.layers[0].missed
    assert "missed their budget, scores too far apart: 0.weight" in str(report)


def test_a_reached_budget_does_not_warn():
    """Catches a warning where an outlier of 1e26 leaves the rest their share, or where there are
    fewer entries than asked for."""
    weight = torch.randn(24, 64, generator=torch.Generator().manual_seed(0))
    weight[3, 5] = 1e26
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = se.sparsify(weight, se.Recipe(se.Randomized(law="row-l1")), 0.5)
        few = se.sparsify(torch.eye(32), "randomized", 0.5)
    assert 600 < out.nnz < 900
    assert few.nnz == 32
    assert not out.report.missed
    assert not few.report.missed
