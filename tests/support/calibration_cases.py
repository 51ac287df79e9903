"""What the tests of calibration share: a model whose inputs are easy to tell, and its data."""

import torch
from torch import nn

import spectral_engine as se
from spectral_engine.calibration.calibrator import Calibrator
from spectral_engine.calibration.request import Request
from spectral_engine.calibration.stages import Stage
from spectral_engine.layers.find import find_layers
from spectral_engine.layers.selector import Selector


def seeded(build):
    torch.manual_seed(0)
    return build()


def layers_of(model: nn.Module):
    return find_layers(model, Selector.of(None, None))[0]


def calibrator(model: nn.Module, batches, refit: se.Refit | None = None, **options) -> Calibrator:
    """A calibration of every layer of a model; options as `se.Calibration` takes them."""
    requests = [Request(layer, refit) for layer in layers_of(model)]
    return Calibrator(model, requests, se.Calibration(batches, **options))


def stages(calibrator: Calibrator) -> list[Stage]:
    return [stage for stages in calibrator._passes for stage in stages]


def by_row(sparsity: float = 0.5, refit: se.Refit | None = None) -> se.Recipe:
    """The same share of every row, by scores of the inputs where there are some."""
    return se.Recipe(budget=se.Uniform(sparsity, group="row"), refit=refit)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def untouched(model: nn.Module, before: dict[str, torch.Tensor], training: bool) -> bool:
    """Whether weights, modes and hooks are what they were."""
    now = model.state_dict()
    return (
        all(torch.equal(now[key], before[key]) for key in before)
        and all(module.training == training for module in model.modules())
        and not any(hooks_of(module) for module in model.modules())
    )


def hooks_of(module: nn.Module) -> list[object]:
    return [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]


class Mlp(nn.Module):
    """Three layers whose inputs are easy to tell."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, width)
        self.second = nn.Linear(width, width)
        self.third = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(torch.relu(self.second(torch.relu(self.first(x)))))


def batches(count: int = 4, rows: int = 16, n: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(rows + i, n, generator=generator) for i in range(count)]
