"""Moments gathered once: the same prunings as with the batches, as often as one likes."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import spectral_engine as se
from tests.support.calibration_cases import by_row

REFITS = (None, se.LeastSquares, se.SparseGPT, se.ALPS)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(96, 24), nn.ReLU(),
        nn.Linear(24, 5, bias=False),
    ).eval()  # fmt: skip


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(40, 2, 6, 6, generator=generator) for _ in range(3)]


def weights(one: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in one.state_dict().items()}


@pytest.mark.parametrize("bias_correction", [False, True])
@pytest.mark.parametrize("refit", REFITS)
def test_prunes_as_with_the_batches(
    refit: Callable[..., se.Refit] | None, bias_correction: bool
) -> None:
    """Catches a refit, or a correction, that spoils the moments for the next pruning, and moments
    that are not those of one pass over the dense model.
    """
    dense = model()
    inputs = se.calibrate(dense, batches())
    if refit is not None:
        chosen: se.Refit | None = refit(bias_correction=bias_correction)
    else:
        chosen = se.BiasCorrection() if bias_correction else None
    recipe = by_row(0.5, chosen)
    expected = copy.deepcopy(dense)
    se.prune(expected, recipe, calibration=se.Calibration(batches(), sequential=False))
    for _ in range(2):
        pruned = copy.deepcopy(dense)
        report = se.prune(pruned, recipe, calibration=inputs)
        assert report.calibration is not None
        assert report.calibration.passes == 0
        for name, tensor in weights(expected).items():
            assert torch.equal(tensor, pruned.state_dict()[name]), name


def test_unseen_layers_say_why() -> None:
    """Catches a layer that no batch reaches being refused, or pruned in silence."""

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    half = Half()
    inputs = se.calibrate(half, [torch.randn(9, 6)])
    assert repr(inputs) == "InputMoments(of 1 layers, 1 unseen)"
    report = se.prune(half, "magnitude", 0.5, calibration=inputs)
    assert "not calibrated, no batch reached it: idle.weight" in str(report)


def test_what_does_not_fit_is_named_before_anything_changes() -> None:
    """Catches moments of another model, or of fewer layers, found out halfway."""
    dense = model()
    before = weights(dense)
    some = se.calibrate(dense, batches(), targets="Linear")
    other = se.calibrate(nn.Sequential(nn.Linear(4, 3)), [torch.randn(8, 4)])
    cases = [
        ("calibration: expected inputs of 0.weight; got those of other", some),
        (r"calibration: expected moments of shape \(2, 9, 9\)", other),
    ]
    for message, calibration in cases:
        with pytest.raises(ValueError, match=message):
            se.prune(dense, "magnitude", 0.5, calibration=calibration)
        for name, tensor in before.items():
            assert torch.equal(tensor, dense.state_dict()[name]), message
