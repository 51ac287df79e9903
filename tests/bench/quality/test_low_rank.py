"""What the comparison with factors measures."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import spectral_engine as se
from bench import tidy
from bench.quality import low_rank
from bench.quality.networks.network import Network


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 12)).eval()
    with torch.no_grad():
        model[0].weight += torch.outer(torch.randn(16).sign(), torch.randn(20).sign())
    batches = [torch.randn(30, 20) for _ in range(2)]

    def score(other: nn.Module) -> dict[str, float]:
        with torch.inference_mode():
            return {"likeness": -float((other(batches[0]) - model(batches[0])).norm())}

    return Network("toy", model, batches, score, "noise")


def test_both_have_the_same_entries_and_prune_gives_the_same(network):
    """Catches factors on top of the budget, and a sum that is not what the layers compute."""
    for recipe in (se.Recipe(), se.Recipe(low_rank=se.LowRank(2))):
        merged, reached, share = low_rank.pruned(network, recipe, 0.5, None)
        model = copy.deepcopy(network.model)
        report = se.prune(model, recipe, 0.5, progress=False)
        assert reached == pytest.approx(report.sparsity)
        assert reached == pytest.approx(0.5, abs=0.01)
        x = network.calibration[0]
        assert torch.allclose(merged(x), model(x), atol=1e-4)
        factors = 2 * (20 + 16 + 16 + 12) if recipe.low_rank else 0
        assert share == pytest.approx(factors / report.nnz)


def test_directions_that_pay_are_counted(network):
    """Catches a threshold of another entry, directions of the whole weight, and a direction held
    against one entry."""
    rows = {row.sparsity: row.value for row in low_rank.paying(network)}
    for sparsity, found in rows.items():
        count = 0
        for layer in (network.model[0], network.model[2]):
            weight = layer.weight.detach().double().numpy()
            kept = round(weight.size * (1 - sparsity))
            threshold = np.sort(np.abs(weight).ravel())[-kept]
            left = np.where(np.abs(weight) < threshold, weight, 0.0)
            values = np.linalg.svd(left, compute_uv=False)
            count += (values > threshold * math.sqrt(sum(weight.shape))).sum()
        assert found == pytest.approx(count / (16 + 12))
    assert 0 < max(rows.values()) < 0.5


def test_what_is_done_is_not_measured_again(network):
    """Catches a run that begins anew, and a table that mixes up its columns."""
    done = {("toy", "magnitude", 0.7), ("toy", "magnitude + factors", 0.7)}
    rows = list(low_rank.measured(network, ["magnitude"], done.__contains__))
    assert {row.sparsity for row in rows if row.metric == low_rank.LAST} == {0.8, 0.9}
    shown = low_rank.table(rows)
    cells = [list(column.cells) for column in shown.columns]
    assert cells[0] == ["toy", "toy"]
    assert cells[1] == ["magnitude", low_rank.DIRECTIONS]
    scores = {row[2:4]: row.value for row in rows if row.metric == "likeness"}
    assert cells[2][0] == "-"
    assert cells[5][0] == f"{scores['magnitude + factors', 0.8]:.3f}"
    assert tidy.text(rows, low_rank.HEAD)
