"""A pruned checkpoint that a trainer loads inside its own call, and a Pruner of a wrapped model."""

import sys
import types

import pytest
import torch
from torch import nn

import spectral_engine as se
from spectral_engine.training.callbacks import lightning_callback, trainer_callback


def mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4), nn.Linear(4, 16), nn.Linear(16, 4)
    )


@pytest.fixture
def pruned() -> dict[str, torch.Tensor]:
    """The state of a model with two pruned weights, one with a single zero, and one all zeros."""
    torch.manual_seed(0)
    model = mlp()
    se.prune(model, sparsity=0.5, targets=["0", "2"])
    with torch.no_grad():
        model[3].weight[0, 0] = 0.0
        model[4].weight.zero_()
    return model.state_dict()


@pytest.fixture(autouse=True)
def trainers(monkeypatch):
    """The base classes of both trainers, which need not be installed."""
    fake = types.SimpleNamespace(Callback=type("Callback", (), {}))
    monkeypatch.setitem(sys.modules, "lightning", types.SimpleNamespace(pytorch=fake))
    monkeypatch.setitem(sys.modules, "lightning.pytorch", fake)
    base = type("TrainerCallback", (), {})
    monkeypatch.setitem(sys.modules, "transformers", types.SimpleNamespace(TrainerCallback=base))


def lightning(model, state, resumed, **options) -> None:
    """`fit` of Lightning: the checkpoint is loaded, then training starts."""
    callback = lightning_callback(**options)
    path = "last.ckpt" if resumed else None
    trainer = types.SimpleNamespace(global_step=3 if resumed else 0, ckpt_path=path)
    model.load_state_dict(state)
    callback.on_train_start(trainer, model)
    steps(model)
    callback.on_train_batch_end(trainer)
    callback.on_train_end(trainer, model)
    callback.load_state_dict(callback.state_dict())


def transformers(model, state, resumed, **options) -> None:
    """`train` of the Trainer: the checkpoint is loaded, then training begins."""
    callback = trainer_callback(**options)
    at = types.SimpleNamespace(global_step=3 if resumed else 0)
    model.load_state_dict(state)
    callback.on_train_begin(None, at, None, model=model)
    steps(model)
    at.global_step += 3
    callback.on_step_end(None, at, None)
    callback.on_train_end(None, at, None)


def steps(model: nn.Module) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (model(torch.randn(5, 8)) - 1).square().sum().backward()
        optimizer.step()


FITS = pytest.mark.parametrize("fit", [lightning, transformers])


@FITS
def test_zeros_that_a_trainer_loads_stay(fit, pruned):
    """Catches a resumed training that makes a pruned model dense without a word; and a weight that
    is all zeros, or has a zero by chance, frozen there."""
    model = mlp()
    fit(model, pruned, resumed=True)
    for index in (0, 2):
        zero = pruned[f"{index}.weight"] == 0
        assert torch.equal(model[index].weight == 0, zero)
    assert set(se.masks(model)) == {"0.weight", "2.weight"}
    assert model[3].weight[0, 0] != 0


@FITS
def test_masks_are_made_only_for_a_checkpoint(fit, pruned):
    """Catches masks where training starts anew, or where they were declined."""
    for resumed, masks in ((False, True), (True, False)):
        model = mlp()
        fit(model, pruned, resumed=resumed, masks=masks)
        assert se.masks(model) == {}
        assert model[0].weight[pruned["0.weight"] == 0].any()
    with pytest.raises(TypeError, match="masks: expected True or False; got 1"):
        fit(mlp(), pruned, resumed=True, masks=1)


@FITS
def test_masks_of_the_model_go_before_those_of_the_checkpoint(fit, pruned):
    """Catches a mask that is there already replaced by one of what was loaded."""
    model = mlp()
    se.apply_masks(model, {"0.weight": torch.rand(16, 8) < 0.5})
    mask = se.masks(model)["0.weight"]
    fit(model, pruned, resumed=True)
    assert se.masks(model)["0.weight"] is mask


@FITS
def test_what_cannot_be_masked_is_a_warning(fit, pruned):
    """Catches a training that breaks off, or goes on dense without a word, for one odd weight."""
    with torch.inference_mode():
        odd = mlp()[0]

    class Odd(nn.Sequential):
        def load_state_dict(self, state_dict):
            super().load_state_dict(state_dict)
            with torch.no_grad():
                values = state_dict["0.weight"]
            with torch.inference_mode():
                self[0].weight = nn.Parameter(values.clone(), requires_grad=False)

    model = Odd(*mlp())
    assert odd.weight.is_inference()
    with pytest.warns(UserWarning, match=r"are not kept: model: 0\.weight is an inference tensor"):
        fit(model, pruned, resumed=True)


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")]
)
def test_a_wrapped_model_is_rewound_and_resumed(wrap):
    """Catches a Pruner that looks up a name of the model inside among the wrapper's, and states
    that only fit the same wrapper."""
    torch.manual_seed(0)
    model = mlp()
    early = {name: value.clone() for name, value in model.state_dict().items()}
    schedule = se.Iterative(0.75, rounds=2, start=1)
    pruner = se.Pruner(wrap(model), schedule, rewind=0, leading=0)
    pruner.step()
    steps(model)
    assert pruner.step() is not None
    kept = model[0].weight != 0
    assert torch.equal(model[0].weight, early["0.weight"] * kept)
    plain = mlp()
    plain.load_state_dict(model.state_dict())
    resumed = se.Pruner(plain, schedule, rewind=0, leading=0)
    resumed.load_state_dict(pruner.state_dict())
    assert torch.equal(se.masks(plain)["0.weight"].unpack(), kept)
    steps(plain)
    assert resumed.step() is not None
    assert torch.equal(plain[0].weight, early["0.weight"] * (plain[0].weight != 0))


SCHEDULE = se.Iterative(0.75, rounds=3, start=2, every=4)


def lightning_steps(callback, model, first: int, last: int, saved=None) -> dict:
    """Batches, two to a step, as Lightning calls them; the state in a checkpoint at the end."""
    trainer = types.SimpleNamespace(global_step=first, ckpt_path=None if saved is None else "x")
    if saved is not None:
        callback.load_state_dict(saved)
    callback.on_train_start(trainer, model)
    for batch in range(2 * first, 2 * last):
        callback.on_train_batch_start(trainer, model, None, batch)
        trainer.global_step = (batch + 1) // 2
        if batch % 2:
            one_step(model, batch)
        callback.on_train_batch_end(trainer, model, None, None, batch)
    return callback.state_dict()


def transformers_steps(callback, model, first: int, last: int, folder) -> None:
    """Steps as the Trainer calls them, with a checkpoint at the end, whose folder it makes."""
    arguments = types.SimpleNamespace(output_dir=str(folder))
    state = types.SimpleNamespace(global_step=first)
    callback.on_train_begin(arguments, state, None, model=model)
    for step in range(first, last):
        callback.on_step_begin(arguments, state, None)
        one_step(model, 2 * step + 1)
        state.global_step += 1
        callback.on_step_end(arguments, state, None)
    (folder / f"checkpoint-{last}").mkdir()
    callback.on_save(arguments, state, None)


def one_step(model: nn.Module, seed: int) -> None:
    """The same for the same seed; plain descent, which has no state of its own."""
    model.zero_grad()
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(seed))
    (model(x) - 1).square().sum().backward()
    torch.optim.SGD(model.parameters(), 0.001).step()


def seeded() -> nn.Module:
    torch.manual_seed(0)
    return mlp()


@FITS
def test_a_pruner_goes_on_where_the_checkpoint_ends(fit, tmp_path):
    """Catches prunings counted in batches, done after the step that they come before, left out or
    done twice where a training goes on, and masks that are lost there."""

    def build(model):
        make = lightning_callback if fit is lightning else trainer_callback
        tracker, pruner = se.SpectrumTracker(model, every=3, rank=2), se.Pruner(model, SCHEDULE)
        return make(tracker, pruner), tracker, pruner

    whole, first, second = seeded(), seeded(), seeded()
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    callback, tracker, pruner = build(whole)
    if fit is lightning:
        lightning_steps(callback, whole, 0, 14)
        saved = lightning_steps(build(first)[0], first, 0, 7)
    else:
        transformers_steps(callback, whole, 0, 14, tmp_path / "whole")
        transformers_steps(build(first)[0], first, 0, 7, tmp_path / "parts")
    second.load_state_dict(first.state_dict())
    callback, later, resumed = build(second)
    if fit is lightning:
        lightning_steps(callback, second, 7, 14, saved)
    else:
        transformers_steps(callback, second, 7, 14, tmp_path / "parts")
    assert [one.step for one in pruner.rounds] == [one.step for one in resumed.rounds] == [2, 6, 10]
    assert pruner.count == resumed.count == 14
    assert tracker.steps.tolist() == later.steps.tolist()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert (second[0].weight == 0).float().mean() == 0.75


@FITS
def test_a_second_training_goes_on_counting(fit, tmp_path):
    """Catches a schedule that starts again, or never goes on, in a second call of `fit`."""
    model = seeded()
    make = lightning_callback if fit is lightning else trainer_callback
    pruner = se.Pruner(model, SCHEDULE, leading=0)
    callback = make(pruner=pruner)
    for part in range(2):
        if fit is lightning:
            lightning_steps(callback, model, 0, 5)
        else:
            (tmp_path / str(part)).mkdir()
            transformers_steps(callback, model, 0, 5, tmp_path / str(part))
    assert [one.step for one in pruner.rounds] == [2, 6]


@pytest.mark.parametrize("make", [lightning_callback, trainer_callback])
def test_what_is_no_tracker_or_pruner_is_refused(make):
    """Catches arguments in the other order, found out only once training has begun."""
    pruner = se.Pruner(mlp(), SCHEDULE)
    with pytest.raises(TypeError, match="tracker: expected a SpectrumTracker; got Pruner"):
        make(pruner)
    with pytest.raises(TypeError, match="pruner: expected a Pruner; got int"):
        make(pruner=3)
