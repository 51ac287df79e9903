"""Schedules and the pruner: what is pruned when, what it says of spectra, that it resumes."""

import copy
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import spectral_engine as se


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 6))


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 0) -> None:
    torch.manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(8, 20)).square().sum().backward()
        optimizer.step()


def zeros(net: nn.Module) -> float:
    weights = torch.cat([weight.flatten() for weight in net.parameters() if weight.ndim > 1])
    return float((weights == 0).double().mean())


def test_one_shot_and_constant() -> None:
    """Catches a schedule that prunes at another step, or leaves its end out."""
    assert se.OneShot(0.9, start=3).targets == {3: 0.9}
    assert se.Constant(0.5, end=6, every=2, start=2).targets == {2: 0.5, 4: 0.5, 6: 0.5}


@given(st.floats(0.01, 0.999), st.integers(1, 9), st.integers(1, 5), st.integers(0, 4))
@settings(max_examples=30)
def test_iterative_keeps_the_same_fraction_each_round(
    sparsity: float, rounds: int, every: int, start: int
) -> None:
    """Catches a linear schedule for a geometric one, and a last round that misses its target."""
    targets = se.Iterative(sparsity, rounds, every, start).targets
    assert list(targets) == [start + every * index for index in range(rounds)]
    assert targets[start + every * (rounds - 1)] == sparsity
    kept = np.array([1.0, *(1.0 - target for target in targets.values())])
    np.testing.assert_allclose(kept[1:] / kept[:-1], (1.0 - sparsity) ** (1.0 / rounds))


def test_cubic_is_equation_1() -> None:
    """Catches another power, or a start and end that are off by one round.

    Zhu and Gupta: s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3.
    """
    found = se.Cubic(0.8, end=50, every=10, start=10, initial=0.2).targets
    n, dt = 4, 10
    expected = {t: 0.8 + (0.2 - 0.8) * (1 - (t - 10) / (n * dt)) ** 3 for t in range(10, 51, dt)}
    assert list(found) == list(expected)
    np.testing.assert_allclose(list(found.values()), list(expected.values()))
    assert found[10] == pytest.approx(0.2)
    assert found[50] == 0.8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: se.Schedule({}), "targets: expected at least one step"),
        (lambda: se.Schedule({-1: 0.5}), "targets: step: expected at least 0; got -1"),
        (lambda: se.Schedule({0: 0.9, 1: 0.5}), "sparsities that never fall"),
        (lambda: se.OneShot(1.0), r"sparsity: expected the fraction of zeros, in \[0, 1\); got 1"),
        (lambda: se.Iterative(0.5, 0), "rounds: expected 1 to 1000000; got 0"),
        (lambda: se.Cubic(0.5, end=7, every=2), "end: expected start plus a multiple of every"),
        (lambda: se.Cubic(0.5, end=5, initial=0.9), "sparsities that never fall"),
        (lambda: se.Constant(0.5, end=0), "end: expected at least 1; got 0"),
    ],
)
def test_bad_schedules(make, message: str) -> None:
    """Catches a schedule whose mistake would show only in the middle of training."""
    with pytest.raises(ValueError, match=message):
        make()


def test_prunes_when_it_is_time_and_training_keeps_the_zeros() -> None:
    """Catches a pruning a step off, a second one at the same sparsity, zeros that train away."""
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 1e-2, momentum=0.9)
    pruner = se.Pruner(net, se.Schedule({1: 0.5, 3: 0.9}), leading=0)
    reached = []
    for _ in range(6):
        reached.append(getattr(pruner.step(), "sparsity", None))
        train(net, optimizer, 3)
    assert [r and round(r, 2) for r in reached] == [None, 0.5, None, 0.9, None, None]
    assert zeros(net) == pytest.approx(0.9, abs=0.01)
    assert pruner.done
    assert [one.step for one in pruner.rounds] == [1, 3]


def test_done_only_when_no_pruning_is_to_come() -> None:
    """Catches `done` before the last pruning has happened."""
    pruner = se.Pruner(network(), se.OneShot(0.5, start=1), leading=0)
    found = []
    for _ in range(3):
        found.append(pruner.done)
        pruner.step()
    assert found == [False, False, True]


def test_each_round_draws_anew() -> None:
    """Catches one seed for all rounds: a second draw that keeps all that the first has kept."""
    net = nn.Linear(64, 64, bias=False)
    nn.init.ones_(net.weight)
    pruner = se.Pruner(net, se.Schedule({0: 0.5, 1: 0.75}), "randomized", leading=0, seed=3)
    pruner.step()
    first = net.weight != 0
    with torch.no_grad():
        net.weight.copy_(first)
    pruner.step()
    assert 0.2 < float((net.weight != 0).double().mean()) < 0.3


def test_spectra_before_after_and_retrained() -> None:
    """Catches spectra of the wrong moment: before is the last training's end, after the pruning's,
    retrained the next pruning's before.
    """
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 1e-3)
    pruner = se.Pruner(net, se.Iterative(0.8, rounds=2, every=2), leading=4, collapse=0.0)

    def values() -> np.ndarray:
        return torch.linalg.svdvals(net[0].weight.detach())[:4].numpy()

    seen = [values()]
    pruner.step()
    seen.append(values())
    for step in range(1, 4):
        train(net, optimizer, 2, step)
        if step == 2:
            seen.append(values())
        pruner.step()
        if step == 2:
            seen.append(values())
    seen.append(values())
    assert pruner.rounds[1].retrained == {}
    pruner.finish()
    pruner.finish()
    first, second = pruner.rounds
    for found, expected in zip(
        (first.before, first.after, first.retrained, second.after, second.retrained),
        (seen[0], seen[1], seen[2], seen[3], seen[4]),
        strict=True,
    ):
        np.testing.assert_allclose(found["0.weight"], expected, rtol=2e-3)
    np.testing.assert_array_equal(second.before["0.weight"], first.retrained["0.weight"])
    share = np.minimum(seen[1] / seen[0], 1.0).mean()
    assert first.kept["0.weight"] == pytest.approx(share, rel=2e-3)
    assert f"{second.sparsity:.4f}" in str(pruner)
    assert pruner.to_dict()["rounds"][1]["requested"] == 0.8
    with pytest.raises(RuntimeError, match="after finish"):
        pruner.step()


def test_warns_once_where_a_spectrum_does_not_recover() -> None:
    """Catches a collapse that goes unsaid, is said of sound weights, or is said every round."""
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    with torch.no_grad():
        for layer in net:
            layer.weight.copy_(torch.diag(torch.arange(8.0, 0.0, -1.0)))
    schedule = se.Schedule({0: 0.95, 1: 0.96, 2: 0.97})
    pruner = se.Pruner(net, schedule, leading=8, masks=False)
    pruner.step()
    with torch.no_grad():
        net[1].weight.copy_(torch.diag(torch.arange(8.0, 0.0, -1.0)))
    with pytest.warns(se.SpectrumCollapse, match=r"0\.weight does not recover.*under 50%") as said:
        pruner.step()
    assert len(said) == 1
    with warnings.catch_warnings(record=True) as more:
        warnings.simplefilter("always")
        pruner.step()
        pruner.finish()
    assert [str(one.message).split()[3] for one in more] == ["1.weight"]


@pytest.mark.parametrize("step", [0, 1])
def test_rewinding_puts_early_weights_back_under_the_mask(step: int) -> None:
    """Catches weights of the wrong step, a mask lost in rewinding, biases that are not rewound."""
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 1e-2, momentum=0.9)
    pruner = se.Pruner(net, se.Iterative(0.8, 2, every=2, start=2), rewind=step, leading=0)
    early = None
    for now in range(5):
        if now == step:
            early = copy.deepcopy(net.state_dict())
        before = copy.deepcopy(net)
        if pruner.step() is None:
            train(net, optimizer, 3, now)
            continue
        se.prune(before, "magnitude", pruner.schedule.targets[now])
        for name, tensor in net.state_dict().items():
            kept = before.state_dict()[name] != 0 if name.endswith("weight") else True
            torch.testing.assert_close(tensor, torch.where(torch.as_tensor(kept), early[name], 0))
        train(net, optimizer, 3, now)
    assert zeros(net) == pytest.approx(0.8, abs=0.01)


def loop(net: nn.Module, pruner: se.Pruner, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        pruner.step()
        train(net, optimizer, 2, step)


def test_resumes_with_the_same_result(tmp_path: Path) -> None:
    """Catches a count, a seed, early weights, masks or records lost in a saved state."""

    def parts() -> tuple[nn.Module, se.Pruner, torch.optim.Optimizer]:
        net = network()
        schedule = se.Iterative(0.9, 3, every=2, start=1)
        pruner = se.Pruner(net, schedule, "randomized", rewind=1, leading=3, collapse=0.0, seed=5)
        return net, pruner, torch.optim.SGD(net.parameters(), 1e-3, momentum=0.9)

    whole = parts()
    loop(*whole, range(8))
    first = parts()
    loop(*first, range(4))
    states = [part.state_dict() for part in first]
    torch.save(states, tmp_path / "state.pt")
    second = parts()
    for part, state in zip(
        second, torch.load(tmp_path / "state.pt", weights_only=True), strict=True
    ):
        part.load_state_dict(state)
    loop(*second, range(4, 8))
    for name, tensor in whole[0].state_dict().items():
        assert torch.equal(tensor, second[0].state_dict()[name])
    whole[1].finish()
    second[1].finish()
    assert whole[1].to_dict() == second[1].to_dict()


def test_a_state_of_another_pruner_is_refused() -> None:
    """Catches a schedule, rewinding or recording mixed up in resuming."""
    state = se.Pruner(network(), se.OneShot(0.5)).state_dict()
    for other in (
        se.Pruner(network(), se.OneShot(0.6)),
        se.Pruner(network(), se.OneShot(0.5), rewind=0),
        se.Pruner(network(), se.OneShot(0.5), leading=0),
    ):
        with pytest.raises(ValueError, match="state: expected the"):
            other.load_state_dict(state)
    with pytest.raises(ValueError, match="state: expected format"):
        other.load_state_dict({})


def test_a_failed_pruning_changes_and_counts_nothing() -> None:
    """Catches a record or a count kept of a round that did not happen."""
    net = network()
    pruner = se.Pruner(net, se.OneShot(0.5), collapse=0.0)
    with torch.no_grad():
        net[0].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"0\.weight"):
        pruner.step()
    with torch.no_grad():
        net[0].weight[0, 0] = 0.1
    assert pruner.count == 0
    assert pruner.step() is not None
    assert len(pruner.rounds) == 1
    assert np.isfinite(pruner.rounds[0].before["0.weight"]).all()


def test_bad_pruners() -> None:
    """Catches an argument whose mistake would show only at the first pruning."""
    net, schedule = network(), se.OneShot(0.5, start=2)
    with pytest.raises(TypeError, match="model: expected a torch"):
        se.Pruner([net], schedule)
    with pytest.raises(TypeError, match="schedule: expected a Schedule; got float"):
        se.Pruner(net, 0.5)
    with pytest.raises(TypeError, match="unexpected keyword argument 'sparsity'"):
        se.Pruner(net, schedule, sparsity=0.5)
    with pytest.raises(ValueError, match=r"rewind: expected at most the step.*2; got 3"):
        se.Pruner(net, schedule, rewind=3)
    with pytest.raises(ValueError, match="collapse"):
        se.Pruner(net, schedule, collapse=2.0)
    with pytest.raises(ValueError, match="targets 'x'"):
        se.Pruner(net, schedule, targets="x")


def test_rewinding_leaves_tied_weights_pruned() -> None:
    """Catches early weights put back under a second name, where they undo the pruning, and state
    that is no tensor."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
            self.out.weight = self.embed.weight

        def get_extra_state(self) -> dict[str, int]:
            return {"version": 1}

        def set_extra_state(self, state: dict[str, int]) -> None:
            pass

    torch.manual_seed(0)
    model = Tied()
    early = model.out.weight.detach().clone()
    se.Pruner(model, se.OneShot(0.9), targets="out", rewind=0, leading=0).step()
    assert int((model.out.weight != 0).sum()) == 16
    kept = model.out.weight != 0
    assert torch.equal(model.out.weight[kept], early[kept])


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_a_round_cut_off_leaves_no_record(error: type[BaseException]) -> None:
    """Catches spectra shifted by a record of a pruning that never was."""
    net = network()
    fails = [True]

    def forward(model: nn.Module, batch: torch.Tensor) -> None:
        if fails:
            raise error("out of memory")
        model(batch)

    calibration = se.Calibration([torch.randn(30, 20)], forward=forward)
    pruner = se.Pruner(net, se.Iterative(0.9, 2), collapse=0.0, calibration=calibration)
    with pytest.raises(error):
        pruner.step()
    fails.clear()
    for _ in range(2):
        pruner.step()
    pruner.finish()
    first, second = pruner.rounds
    for name, values in first.before.items():
        np.testing.assert_array_equal(first.retrained[name], second.before[name])
        assert np.square(values).sum() > np.square(first.after[name]).sum()


def test_resumes_with_parts_and_with_a_layer_of_zeros() -> None:
    """Catches a state that another pruner of the same arguments cannot go on from."""
    split = {"0": ("upper", "lower")}
    makes = (
        lambda net: se.Pruner(
            net, se.OneShot(0.5), se.Recipe(select=se.Select("0.weight[[]upper]", split=split))
        ),
        lambda net: se.Pruner(net, se.Iterative(0.9, 3), leading=0),
    )
    for make in makes:
        net = network()
        pruner = make(net)
        pruner.step()
        if pruner.schedule.last:
            with torch.no_grad():
                net[2].weight.zero_()
        again = network()
        again.load_state_dict(net.state_dict())
        resumed = make(again)
        resumed.load_state_dict(pruner.state_dict())
        assert torch.equal(se.masks(again)["0.weight"].unpack(), net[0].weight != 0)


def test_a_state_of_other_weights_changes_nothing() -> None:
    """Catches a pruner half resumed."""
    net = network()
    pruner = se.Pruner(net, se.OneShot(0.5), leading=0)
    pruner.step()
    other = se.Pruner(nn.ModuleDict({"a": nn.Linear(4, 4)}), se.OneShot(0.5), leading=0)
    with pytest.raises(ValueError, match=r"state: expected weights of this model; got '0\.weight'"):
        other.load_state_dict(pruner.state_dict())
    assert (other.count, other.rounds) == (0, [])


def test_what_is_said_of_a_collapse_is_json() -> None:
    """Catches NaN, which JSON lacks, in the very case that is worth a record."""
    net = network()
    pruner = se.Pruner(net, se.OneShot(0.5))
    pruner.step()
    with torch.no_grad():
        net[0].weight.fill_(torch.nan)
    with pytest.warns(se.SpectrumCollapse):
        pruner.finish()
    text = json.dumps(pruner.to_dict(), allow_nan=False)
    assert json.loads(text)["rounds"][0]["recovered"]["0.weight"] is None


@pytest.mark.parametrize(
    ("recipe", "schedule", "options", "message"),
    [
        ("magnitud", se.OneShot(0.5, start=3), {}, "recipe: expected one of"),
        ("wanda", se.OneShot(0.5, start=3), {}, "calibration: 'wanda' needs calibration inputs"),
        (se.Recipe(budget=se.Pattern("2:4")), se.Iterative(0.9, 2), {}, "sparsity: pattern '2:4'"),
        (se.Recipe(budget=se.MaxError(0.1)), se.OneShot(0.5), {}, "sparsity: MaxError"),
        ("magnitude", se.OneShot(0.5), {"collapse": 2.0}, "collapse: expected a share"),
    ],
)
def test_options_are_checked_at_once(recipe, schedule, options, message: str) -> None:
    """Catches a mistake that shows only once training has come to the first pruning."""
    with pytest.raises(ValueError, match=message):
        se.Pruner(network(), schedule, recipe, **options)
