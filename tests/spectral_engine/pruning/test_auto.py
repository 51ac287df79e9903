"""Method "auto" with calibration inputs: what bench/quality speaks for."""

import copy
from dataclasses import replace

import torch
from torch import nn

import spectral_engine as se


def network() -> nn.Sequential:
    """Two layers; the inputs of the second are correlated."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 8))


def batches() -> list[torch.Tensor]:
    """Correlated inputs, so that a refit has something to gain."""
    torch.manual_seed(1)
    mixing = torch.randn(24, 24)
    return [torch.randn(64, 24) @ mixing for _ in range(3)]


def same(one: nn.Module, other: nn.Module) -> bool:
    """Whether all parameters are equal, bit for bit."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_with_calibration_it_is_alps_by_row_under_erk():
    """Calibration batches that "auto" makes no use of, or uses otherwise than documented."""
    model, other = network(), network()
    report = se.prune(model, "auto", 0.5, calibration=batches())
    chosen = se.Recipe(
        se.Magnitude(),
        budget=se.ERK(0.5, group="row"),
        refit=se.ALPS(),
        reconstruction=se.Reconstruction(),
    )
    se.prune(other, chosen, calibration=batches())
    assert same(model, other)
    assert report.recipes == (replace(chosen, fallback=se.Recipe()),)
    assert len({row.requested for row in report.layers}) == 2
    inputs = batches()[0]
    weight = network()[0].weight.detach()
    one = se.sparsify(weight, "auto", 0.5, inputs=inputs).weight
    alone = se.Recipe(budget=se.Uniform(0.5, group="row"), refit=se.ALPS())
    two = se.sparsify(weight, alone, inputs=inputs).weight
    assert torch.equal(one, two)


def test_a_layer_without_inputs_is_pruned_by_magnitude():
    """A layer that no batch reaches pruned by row, which "auto" without inputs is not."""
    model = nn.ModuleDict({"seen": nn.Linear(24, 16), "unseen": nn.Linear(24, 16)})
    other = copy.deepcopy(model["unseen"])
    calibration = se.Calibration(batches(), forward=lambda m, batch: m["seen"](batch))
    report = se.prune(model, "auto", 0.5, calibration=calibration)
    se.prune(other, "magnitude", 0.5)
    assert torch.equal(model["unseen"].weight, other.weight)
    assert {row.name: row.uncalibrated is None for row in report.layers} == {
        "seen.weight": True, "unseen.weight": False,
    }  # fmt: skip


def test_blocks_of_one_form_share_alike():
    """Catches ERK in a language model, whose narrow layers it leaves dense at the cost of the
    wide ones; and a uniform budget elsewhere."""
    encoder = nn.TransformerEncoderLayer(8, 2, 32, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(encoder, 2, enable_nested_tensor=False)
    data = [torch.randn(2, 6, 8) for _ in range(3)]
    report = se.prune(model, "auto", 0.5, calibration=data, progress=False)
    assert report.recipes[0].budget == se.Uniform(0.5, group="row")
    assert report.reconstruction is not None
    assert report.reconstruction.whole is not None
