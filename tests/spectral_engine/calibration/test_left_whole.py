"""A model is left as it was: by errors, by what is refused, by evaluation mode."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import spectral_engine as se
from tests.support.calibration_cases import (
    Mlp,
    batches,
    hooks_of,
    state,
    untouched,
)

NAN = torch.full((3, 8), float("nan"))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"calibration": [torch.ones(3, 8), NAN]}, ValueError, "calibration: batch 1 holds NaN"),
        ({"calibration": [(torch.ones(3, 8), {"a": [NAN]})]}, ValueError, "batch 0 holds NaN"),
        ({"calibration": []}, ValueError, "calibration: expected at least one batch"),
        ({"calibration": iter([torch.ones(3, 8)])}, TypeError, "gone through several times"),
        ({"calibration": (x for x in [NAN])}, TypeError, "got generator, which list"),
        ({"calibration": 3}, TypeError, "calibration: expected batches; got int"),
        ({"calibration": se.Calibration([torch.ones(3, 8)], max_bytes=100)}, ValueError,
         r"max_bytes: .* 1,728 bytes, the largest those of second.weight; got 100"),
        ({"recipe": se.Recipe(refit=se.BiasCorrection())}, ValueError,
         r"calibration: Recipe\(.* needs calibration inputs; got none"),
        ({"recipe": "least-squares"}, ValueError, "calibration: 'least-squares' needs"),
    ],
)  # fmt: skip
def test_bad_input_leaves_the_model_alone(options, error, message):
    """Catches a mistake that shows when half of the model is pruned."""
    model = Mlp()
    before = state(model)
    with pytest.raises(error, match=message):
        se.prune(model, **options)
    assert untouched(model, before, training=True)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"forward": 3}, TypeError, "forward: expected a function"),
        ({"sequential": 1}, TypeError, "sequential: expected True or False"),
        ({"asymmetric": 1}, TypeError, "asymmetric: expected True or False"),
        ({"sequential": False, "asymmetric": True}, ValueError, "asymmetric: "),
        ({"max_bytes": 1.0}, TypeError, "max_bytes: expected an integer"),
    ],
)
def test_a_calibration_is_checked_when_it_is_made(options, error, message):
    """Catches a wrong option that shows when the model has been run already."""
    with pytest.raises(error, match=message):
        se.Calibration([torch.ones(3, 8)], **options)


class Fails(list):
    """Batches of which the second pass for moments breaks off; two before it trace."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        self.passes = getattr(self, "passes", 0) + 1
        yield from list.__iter__(self)
        if self.passes == 4:
            raise OSError("disk on fire")


def test_an_error_on_the_way_brings_all_back():
    """Catches a model left half pruned, its biases too, with masks or hooks on it."""
    model = Mlp().train()
    model.second.eval()
    before, modes = state(model), [module.training for module in model.modules()]

    def stop(row) -> None:
        if row.name == "second.weight":
            raise KeyboardInterrupt

    for data, progress, error in (
        (Fails(batches()), False, OSError),
        (batches(), stop, KeyboardInterrupt),
    ):
        with pytest.raises(error):
            se.prune(
                model, se.Recipe(refit=se.BiasCorrection()), progress=progress,
                calibration=se.Calibration(data, sequential=True),
            )  # fmt: skip
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert modes == [module.training for module in model.modules()]
        assert not any(hooks_of(module) for module in model.modules())
        assert not se.masks(model)


def test_nan_inside_the_model_is_refused():
    """Catches NaN that a layer makes of finite inputs, and that a mask would be drawn from."""
    model = Mlp()
    before = state(model)

    def forward(model: Mlp, x: torch.Tensor) -> torch.Tensor:
        return model.third(model.second(torch.relu(model.first(x)) / 0.0))

    with pytest.raises(ValueError, match=r"the inputs of second.weight hold NaN or infinity"):
        se.prune(model, calibration=se.Calibration(batches(), forward=forward))
    assert untouched(model, before, training=True)


def test_evaluation_mode_without_a_trace():
    """Catches batch statistics that calibration moves, dropout, and gradients that are kept."""
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 2))
    model.train()
    before = model[1].running_mean.clone()
    se.prune(model, "least-squares", calibration=batches())
    assert torch.equal(model[1].running_mean, before)
    assert all(module.training for module in model.modules())
    assert all(p.grad is None and p.grad_fn is None for p in model.parameters())


def test_modes_come_back_by_the_modules_own_way():
    """Catches a module left in one mode with the state of the other, as merged adapters have."""

    class Merging(nn.Linear):
        merged = False

        def train(self, mode: bool = True):
            super().train(mode)
            if self.merged == mode:
                self.weight.data += 1.0 if not mode else -1.0
                self.merged = not mode
            return self

    model = nn.Sequential(Merging(8, 8), nn.BatchNorm1d(8).eval())
    before = model[0].weight.detach().clone()
    se.calibrate(model, [torch.randn(6, 8)])
    assert [module.training for module in model] == [True, False]
    assert not model[0].merged
    torch.testing.assert_close(model[0].weight.detach(), before)


def test_what_cannot_be_calibrated_is_refused():
    """Catches moments of nothing, and an error from deep inside."""
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module; got str"):
        se.calibrate("model", [torch.ones(1, 8)])
    with pytest.raises(ValueError, match="targets: no prunable weight is left"):
        se.calibrate(nn.Linear(8, 8), [torch.ones(1, 8)], targets="Lineer")
