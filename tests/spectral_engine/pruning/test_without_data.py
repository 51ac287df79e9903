"""Recipe "auto" without calibration: what errs least on simulated inputs, or magnitude."""

import copy

import pytest
import torch
from torch import nn

import spectral_engine as se
from spectral_engine.datafree.simulate import output_error, outputs


def network() -> nn.Sequential:
    """Layers whose inputs are correlated, and of which one has far larger weights."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)
    )
    with torch.no_grad():
        model[2].weight.mul_(torch.linspace(0.05, 3.0, 32))
        model[4].weight.mul_(5.0)
    return model


def error(model: nn.Module, dense: nn.Module) -> float:
    """The error of the outputs over inputs that nothing was fitted to."""
    random = torch.Generator().manual_seed(9)
    batches = [torch.randn(512, 24, generator=random)]
    return output_error(outputs(dense, batches), outputs(model, batches))


def test_it_is_nearer_to_the_dense_model_than_magnitude():
    """Catches a default that gains nothing where there is much to gain, and a report that does not
    say what was tried."""
    dense = network()
    model, other = copy.deepcopy(dense), copy.deepcopy(dense)
    report = se.prune(model, "auto", 0.6, progress=False)
    se.prune(other, "magnitude", 0.6, progress=False)
    assert error(model, dense) < 0.7 * error(other, dense)
    assert report.sparsity == pytest.approx(0.6, abs=1e-3)
    [note] = report.notes
    assert "256 samples of 24 numbers" in note
    assert "output error: magnitude" in note
    assert "least squares (spectral)" in note
    assert report.recipes[0] != se.Recipe(budget=se.Uniform(0.6))


def test_the_model_is_that_of_the_report():
    """Catches weights left from another attempt than the one reported: the recipe, carried out on
    the same inputs, gives the same bits, masks hold them, and what is counted is there."""
    dense = network()
    model, other = copy.deepcopy(dense), copy.deepcopy(dense)
    seen: list[str] = []
    report = se.prune(model, "auto", 0.6, seed=2, progress=lambda row: seen.append(row.name))
    simulated = se.simulate(dense, seed=2)
    se.prune(
        other, report.recipes, calibration=se.calibrate(dense, simulated.batches), progress=False
    )
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    assert seen == [row.name for row in report.layers] == ["0.weight", "2.weight", "4.weight"]
    assert report.nnz == sum(int((model[i].weight != 0).sum()) for i in (0, 2, 4))
    assert set(se.masks(model)) == {"0.weight", "2.weight", "4.weight"}


class Two(nn.Module):
    """Takes two things, which cannot be simulated."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 8)

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return self.layer(one * other)


def test_what_cannot_be_simulated_is_pruned_by_magnitude():
    """Catches an error where there is a safe answer, and a fallback that nobody is told of."""
    model = Two()
    other = copy.deepcopy(model)
    report = se.prune(model, "auto", 0.5, progress=False)
    se.prune(other, "magnitude", 0.5, progress=False)
    assert torch.equal(model.layer.weight, other.layer.weight)
    assert report.notes == [
        "auto without calibration, by magnitude: model: its inputs cannot be simulated: its "
        "forward takes 2 arguments"
    ]


def test_magnitude_is_kept_where_nothing_is_left_of_the_outputs():
    """Catches a choice between errors that say nothing: of a network that gives noise at this
    sparsity, whatever is done."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)
    )
    other = copy.deepcopy(model)
    report = se.prune(model, "auto", 0.98, progress=False)
    se.prune(other, "magnitude", 0.98, progress=False)
    assert torch.equal(model[2].weight, other[2].weight)
    assert report.recipes == (se.Recipe(budget=se.Uniform(0.98)),)


def test_an_error_brings_everything_back():
    """Catches weights of an attempt left behind where a caller's function fails."""
    model = network()
    before = copy.deepcopy(model.state_dict())

    def fail(row: se.LayerReport) -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        se.prune(model, "auto", 0.5, progress=fail)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not se.masks(model)
