"""Moments gathered once: the same prunings as with the batches, as often as one likes."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import spectral_engine as se

REFITS = (None, "least-squares", "sparsegpt", "admm")


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
def test_prunes_as_with_the_batches(refit: str | None, bias_correction: bool) -> None:
    """Catches a refit, or a correction, that spoils the moments for the next pruning, and moments
    that are not those of one pass over the dense model.
    """
    dense = model()
    inputs = se.calibrate(dense, batches())
    options: dict[str, Any] = {"refit": refit, "group": "row", "bias_correction": bias_correction}
    expected = copy.deepcopy(dense)
    se.prune(expected, "magnitude", 0.5, calibration=batches(), sequential=False, **options)
    for _ in range(2):
        pruned = copy.deepcopy(dense)
        report = se.prune(pruned, "magnitude", 0.5, calibration=inputs, **options)
        assert report.options["passes"] == 0
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
    """Catches moments of another model, of fewer layers, or too little memory found out halfway."""
    dense = model()
    before = weights(dense)
    some = se.calibrate(dense, batches(), targets="Linear")
    other = se.calibrate(nn.Sequential(nn.Linear(4, 3)), [torch.randn(8, 4)])
    whole = se.calibrate(dense, batches())
    cases: list[tuple[str, dict[str, Any]]] = [
        ("calibration: expected inputs of 0.weight; got those of other", {"calibration": some}),
        (r"calibration: expected moments of shape \(2, 9, 9\)", {"calibration": other}),
        ("sequential: expected the default", {"calibration": whole, "sequential": True}),
        ("asymmetric: expected the default", {"calibration": whole, "asymmetric": True}),
        ("forward: expected the default", {"calibration": whole, "forward": lambda m, b: m(b)}),
        ("max_bytes: the moments of", {"calibration": whole, "max_bytes": 1000, "refit": "admm"}),
    ]
    for message, options in cases:
        with pytest.raises(ValueError, match=message):
            se.prune(dense, "magnitude", 0.5, **options)
        for name, tensor in before.items():
            assert torch.equal(tensor, dense.state_dict()[name]), message
