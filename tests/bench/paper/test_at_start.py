"""What pruning at initialisation scores, against finite differences."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.paper.runs import at_start
from bench.paper.training.data import Part


def smooth_network() -> nn.Sequential:
    """A small network whose Hessian is defined everywhere, in float64."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def flow(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """|g|^2 by the matrices, of the loss at GraSP's temperature."""
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    loss = cross_entropy(model(inputs) / at_start.TEMPERATURE, labels)
    return float(sum((one**2).sum() for one in torch.autograd.grad(loss, matrices)))


def test_gradient_flow_that_goes_with_a_weight() -> None:
    """Catches GraSP's score with a sign, a factor, the Hessian or the temperature wrong: shrinking
    one weight by a thousandth must change |g|^2 by -2 w (H g) of it.
    """
    model, labels = smooth_network(), torch.tensor([0, 1, 2, 1])
    inputs = 3.0 * torch.randn(4, 6, dtype=torch.float64)
    at_start.flow_gradient(model, inputs, labels)
    step = 1e-3
    for weight in (weight for weight in model.parameters() if weight.ndim > 1):
        score = at_start.flow_kept(weight, weight).detach()
        for place in range(0, weight.numel(), 4):
            entry = weight.data.view(-1)[place].item()
            ends = []
            for sign in (-1.0, 1.0):
                weight.data.view(-1)[place] = entry * (1.0 + sign * step)
                ends.append(flow(model, inputs, labels))
            weight.data.view(-1)[place] = entry
            slope = (ends[0] - ends[1]) / (2.0 * step)
            assert slope == pytest.approx(-2.0 * float(score.view(-1)[place]), rel=1e-4, abs=1e-12)


def test_grasp_keeps_what_carries_gradient_flow() -> None:
    """Catches the mask turned round, as where the flow that a removal *adds* is kept."""
    model = smooth_network()
    inputs, labels = torch.randn(8, 6, dtype=torch.float64), torch.arange(8) % 3
    at_start.flow_gradient(model, inputs, labels)
    before = flow(model, inputs, labels)
    kept = at_start.chosen(model, 0.1, 0, at_start.flow_kept)
    left = {}
    for name, masks in (("kept", kept), ("rest", {key: ~mask for key, mask in kept.items()})):
        model_after = smooth_network()
        with torch.no_grad():
            for key, mask in masks.items():
                model_after.get_parameter(key).mul_(mask)
        left[name] = flow(model_after, inputs, labels)
    assert left["kept"] > before > left["rest"]


def test_images_of_each_class() -> None:
    """Catches a class left out, or one with more images than the others."""
    labels = torch.tensor([2, 0, 0, 1, 0, 1, 2, 2])
    images, found = at_start.of_each_class(Part(torch.arange(8), labels), 2)
    assert images.tolist() == [1, 2, 3, 5, 0, 6]
    assert found.tolist() == [0, 0, 1, 1, 2, 2]
