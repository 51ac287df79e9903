"""Method "auto": magnitude, and with calibration inputs what bench/quality speaks for."""

import copy

import pytest
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


def test_without_calibration_it_is_magnitude():
    """A default that is below magnitude somewhere, or a report that hides what was done."""
    model, other = network(), network()
    report = se.prune(model, "auto", 0.5)
    se.prune(other, "magnitude", 0.5)
    assert same(model, other)
    assert (report.method, report.options["refit"], report.options["group"]) == (
        "auto", None, "tensor",
    )  # fmt: skip


def test_with_calibration_it_is_admm_by_row_under_erk():
    """Calibration batches that "auto" makes no use of, or uses otherwise than documented."""
    model, other = network(), network()
    report = se.prune(model, "auto", 0.5, calibration=batches())
    chosen = {"refit": "admm", "group": "row", "allocation": "erk"}
    se.prune(other, "magnitude", 0.5, calibration=batches(), **chosen)
    assert same(model, other)
    assert {name: report.options[name] for name in chosen} == chosen
    assert len({row.requested for row in report.layers}) == 2
    inputs = batches()[0]
    weight = network()[0].weight.detach()
    one = se.sparsify(weight, "auto", 0.5, inputs=inputs).weight
    two = se.sparsify(weight, "magnitude", 0.5, inputs=inputs, refit="admm", group="row").weight
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    "options",
    [
        {"refit": "least-squares"},
        {"pattern": "2:4"},
        {"allocation": "uniform"},
        {"sparsity": None, "max_error": 0.3},
    ],
)
def test_what_is_asked_for_stays(options):
    """A refit, a pattern, an allocation or an error that "auto" overrides."""
    model, other = network(), network()
    se.prune(model, "auto", calibration=batches(), **options)
    given = "pattern" in options or "max_error" in options
    expected = {"refit": "admm", "allocation": "uniform" if given else "erk"} | options
    group = "tensor" if "pattern" in options else "row"
    se.prune(other, "magnitude", calibration=batches(), group=group, **expected)
    assert same(model, other)


def test_a_layer_without_inputs_is_pruned_by_magnitude():
    """A layer that no batch reaches pruned by row, which "auto" without inputs is not."""
    model = nn.ModuleDict({"seen": nn.Linear(24, 16), "unseen": nn.Linear(24, 16)})
    other = copy.deepcopy(model["unseen"])
    report = se.prune(
        model, "auto", 0.5, calibration=batches(), forward=lambda m, batch: m["seen"](batch)
    )
    se.prune(other, "magnitude", 0.5)
    assert torch.equal(model["unseen"].weight, other.weight)
    assert {row.name: row.uncalibrated is None for row in report.layers} == {
        "seen.weight": True, "unseen.weight": False,
    }  # fmt: skip
