"""What works in place alters copies: not the batches, the dense model's inputs or the model."""

import copy

import pytest
import torch
from torch import nn

import spectral_engine as se
from spectral_engine.calibration.batches import copied
from tests.support.calibration_cases import by_row, seeded


class Normalises(nn.Module):
    """A forward that works in place on what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x.sub_(0.5).div_(0.25)).relu_())


class Residual(nn.Module):
    """Layers whose input is altered once they have seen it."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.inplace = inplace
        self.first, self.a, self.b, self.head = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for layer in (self.a, self.b):
            if self.inplace:
                x += 3 * layer(x)
            else:
                x = x + 3 * layer(x)
        return self.head(x)


@pytest.mark.parametrize("options", [{}, {"sequential": True}, {"asymmetric": True}])
@pytest.mark.parametrize("form", ["tensor", "tuple", "dictionary", "nested"])
def test_the_users_batch_is_not_altered(options, form):
    """Catches a batch that every run normalises once more."""
    x = torch.rand(16, 8)
    mine = x.clone()
    batch = {"tensor": mine, "tuple": (mine, 0), "dictionary": {"x": mine}, "nested": [[mine]]}
    forward = (lambda model, batch: model(batch[0][0])) if form == "nested" else None
    calibration = se.Calibration([batch[form]], forward=forward, **options)
    se.prune(seeded(Normalises), by_row(0.5), calibration=calibration)
    assert torch.equal(mine, x)
    expected = (x - 0.5) / 0.25
    found = se.calibrate(seeded(Normalises), [batch[form]], forward=forward).moments["a.weight"]
    torch.testing.assert_close(found.second, expected.mT @ expected / 16)


@pytest.mark.parametrize("recipe", ["least-squares", "sparsegpt", "alps"])
def test_asymmetric_fits_to_what_layers_saw(recipe):
    """Catches references to the dense model's inputs, which its forward has altered by then."""
    found = []
    for inplace in (False, True):
        torch.manual_seed(0)
        model = Residual(inplace)
        se.prune(model, recipe, 0.5,
                 calibration=se.Calibration([torch.randn(64, 8)], asymmetric=True))  # fmt: skip
        found.append(model.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_tensor_that_comes_twice_is_one_in_the_copy():
    """Catches copies that are two tensors where a model asks whether key is query."""
    x = torch.ones(3)
    batch = copied((x, {"again": x}, [torch.ones(2)]), None)
    assert batch[0] is batch[1]["again"]
    assert batch[0] is not x


def test_the_model_is_left_as_it_was():
    """Catches buffers that a forward counts or caches in, and random numbers that it draws."""

    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("last", None)
            self.register_buffer("cache", torch.zeros(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            self.cache = torch.randn(3)
            return self.layer(x)

    model = seeded(Counts)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    se.calibrate(model, [torch.ones(4, 8)])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
