"""SpectrumTracker: what it records and when, that it resumes, and what it says of the spectra."""

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import spectral_engine as se
from spectral_engine.training.callbacks import lightning_callback, trainer_callback


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 8), nn.Linear(8, 5))


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(4, 12)).square().sum().backward()
        optimizer.step()


def scripted(scales: list[Any], every: int = 1, rank: int = 4) -> se.SpectrumTracker:
    """A tracker that has recorded one weight as each of these diagonals in turn."""
    net = nn.ParameterDict({"w": torch.zeros(6, 6)})
    tracker = se.SpectrumTracker(net, every, rank)
    for scale in scales:
        with torch.no_grad():
            net["w"].copy_(torch.diag(torch.as_tensor(scale).expand(6).float()))
        tracker.record()
        tracker.count += 10
    return tracker


def test_records_at_the_right_steps_with_the_right_values() -> None:
    """Catches a record too early, too late or twice at the end, and values of the wrong step."""
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 1e-3)
    with se.SpectrumTracker(net, every=3, rank=4) as tracker:
        first = np.linalg.svd(net[0].weight.detach().numpy(), compute_uv=False)
        for _ in range(7):
            train(net, optimizer, 1)
            tracker.step()
    last = np.linalg.svd(net[0].weight.detach().numpy(), compute_uv=False)
    assert tracker.steps.tolist() == [0, 3, 6, 7]
    values = tracker.singular_values("0.weight")
    assert values.shape == (4, 4)
    assert tracker.singular_values("1.weight").shape == (4, 4)
    np.testing.assert_allclose(values[0], first[:4], rtol=1e-4)
    np.testing.assert_allclose(values[-1], last[:4], rtol=1e-4)
    np.testing.assert_allclose(tracker.frobenius("0.weight")[-1], np.linalg.norm(last), rtol=1e-5)
    p = last / last.sum()
    assert tracker.effective_rank("0.weight")[-1] == pytest.approx(np.exp(-p @ np.log(p)), rel=1e-4)
    assert tracker.stable_rank("0.weight")[-1] == pytest.approx((last @ last) / last[0] ** 2)


def test_optimizer_hook_counts_and_comes_off() -> None:
    """Catches a hook that outlives its block, that is there twice, or training that it changes."""
    net, twin = network(), network()
    optimizer = torch.optim.Adam(net.parameters())
    with se.SpectrumTracker(net, every=2, optimizer=optimizer) as tracker:
        torch.manual_seed(1)
        train(net, optimizer, 4)
        tracker.attach(optimizer)
        train(net, optimizer, 2)
    train(net, optimizer, 5)
    assert tracker.count == 6
    assert tracker.steps.tolist() == [0, 2, 4, 6]
    torch.manual_seed(1)
    train(twin, torch.optim.Adam(twin.parameters()), 11)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))


def test_an_error_in_training_passes_and_takes_the_hook_off() -> None:
    """Catches a record of the wreck, and a swallowed error."""
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 1e-3)
    tracker = se.SpectrumTracker(net, every=2, optimizer=optimizer)

    def fail() -> None:
        with tracker:
            train(net, optimizer, 3)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail()
    train(net, optimizer, 3)
    assert tracker.steps.tolist() == [0, 2]


def test_resumes_from_a_file_and_from_a_state(tmp_path: Path) -> None:
    """Catches records, the count or the phase of `every` lost on the way, a pickle in the file."""
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 1e-3)
    with se.SpectrumTracker(net, every=4, rank=3, optimizer=optimizer) as tracker:
        train(net, optimizer, 6)
    path = tmp_path / "records.npz"
    tracker.save(path)
    tracker.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["records.npz"]
    with np.load(path, allow_pickle=False) as file:
        assert all(file[name].dtype != object for name in file.files)
    torch.save(tracker.state_dict(), tmp_path / "state.pt")
    resumed = [se.SpectrumTracker(net, every=4, rank=3) for _ in range(2)]
    resumed[0].load(path)
    resumed[1].load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for other in resumed:
        assert other.count == 6
        assert other.steps.tolist() == [0, 4, 6]
        for _ in range(2):
            other.step()
        assert other.steps.tolist() == [0, 4, 6, 8]
        for name in tracker.names:
            for read in ("singular_values", "frobenius", "effective_rank", "stable_rank"):
                np.testing.assert_array_equal(
                    getattr(other, read)(name)[:3], getattr(tracker, read)(name)
                )


def test_a_file_that_is_not_its_own_is_refused(tmp_path: Path) -> None:
    """Catches records of another network or another rank taken on, or a trace for a bad file."""
    tracker = se.SpectrumTracker(network(), rank=3)
    tracker.record()
    tracker.save(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"0\.weight of shape \(1, 2\); got \(1, 3\)"):
        se.SpectrumTracker(network(), rank=2).load(tmp_path / "a.npz")
    other = se.SpectrumTracker(nn.Linear(12, 8), rank=3)
    with pytest.raises(ValueError, match="state: expected singular values of weight"):
        other.load(tmp_path / "a.npz")
    assert len(other.steps) == 0
    np.savez(tmp_path / "b.npz", x=np.ones(3))
    with pytest.raises(ValueError, match=r"a file that SpectrumTracker\.save wrote"):
        tracker.load(tmp_path / "b.npz")
    (tmp_path / "c.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"c\.npz"):
        tracker.load(tmp_path / "c.npz")
    with pytest.raises(ValueError, match=r"ends in \.npz; got 'a\.json'"):
        tracker.save(tmp_path / "a.json")
    with pytest.raises(ValueError, match="format"):
        tracker.load_state_dict({"steps": []})


def test_stabilised_is_for_good() -> None:
    """Catches a pause taken for the end, slow drift taken for rest, and an answer too early."""
    rest = [1.0] * 6
    assert scripted([3, 2, *rest]).stabilised(0.01, 3) == {"w": 50}
    assert scripted([*rest, 2, *rest]).stabilised(0.01, 3) == {"w": 100}
    assert scripted([*rest, 2]).stabilised(0.01, 3) == {"w": None}
    drift = [1.009**i for i in range(12)]
    assert scripted(drift).stabilised(0.01, 1) == {"w": 10}
    assert scripted(drift).stabilised(0.01, 5) == {"w": None}
    assert scripted([1.0, 1.0]).stabilised(0.01, 5) == {"w": None}


def test_collapsed() -> None:
    """Catches a collapse of rank, of norm or into NaN not seen, and one seen where it passed."""
    ones = [torch.ones(6)] * 3
    spike = [torch.tensor([9.0, 0, 0, 0, 0, 0])]
    assert scripted([*ones, *spike, *spike]).collapsed(0.5) == {"w": 30}
    assert scripted([*ones, *spike, *ones]).collapsed(0.5) == {"w": None}
    assert scripted([*ones, *spike]).collapsed(0.1) == {"w": None}
    assert scripted([1.0, 2.0, 1e-7, 1e-8]).collapsed() == {"w": 20}
    assert scripted([1.0, 0.0, 0.0]).collapsed() == {"w": 10}
    assert scripted([1.0, torch.nan, torch.nan]).collapsed() == {"w": 10}
    assert scripted([0.0, 0.0, 1.0]).collapsed() == {"w": None}


def test_nan_stops_no_training() -> None:
    """Catches a record that raises on NaN, or one bad weight that spoils the others' rows."""
    net = network()
    tracker = se.SpectrumTracker(net, rank=3)
    tracker.record()
    with torch.no_grad():
        net[0].weight[2, 3] = torch.nan
    tracker.record()
    assert np.isnan(tracker.singular_values("0.weight")[1]).all()
    assert np.isfinite(tracker.singular_values("1.weight")).all()
    assert tracker.stabilised(1.0, 1)["0.weight"] is None


def test_names_and_blocks_are_those_of_prune() -> None:
    """Catches records under other names than the report's rows, a part that is not recorded, and
    of a depthwise convolution the values of one group for those of all.
    """
    torch.manual_seed(2)
    net = nn.ModuleDict(
        {"rnn": nn.GRU(6, 5), "conv": nn.Conv1d(8, 8, 3, groups=8), "qkv": nn.Linear(4, 6)}
    )
    split = {"qkv": ("q", "k")}
    tracker = se.SpectrumTracker(net, rank=3, split=split)
    tracker.record()
    norms = net["conv"].weight.detach().flatten(1).norm(dim=1).sort(descending=True).values
    np.testing.assert_allclose(tracker.singular_values("conv.weight")[0], norms[:3], rtol=1e-5)
    p = norms / norms.sum()
    assert tracker.effective_rank("conv.weight")[0] == pytest.approx(
        float(torch.exp(-(p * p.log()).sum())), rel=1e-5
    )
    report = se.prune(net, se.Recipe(se.Magnitude(), select=se.Select(split=split)), 0.5)
    assert tracker.names == [layer.name for layer in report.layers]


def test_weights_are_looked_up_anew() -> None:
    """Catches a tracker that holds on to replaced parameters, and one that is gone unseen."""
    net = network()
    tracker = se.SpectrumTracker(net, rank=2)
    net[0].weight = nn.Parameter(torch.eye(8, 12) * 5)
    tracker.record()
    np.testing.assert_allclose(tracker.singular_values("0.weight"), [[5.0, 5.0]], rtol=1e-5)
    net[1] = nn.Identity()
    with pytest.raises(ValueError, match=r"model: expected weight 1\.weight as it was at first"):
        tracker.record()
    assert len(tracker.steps) == 1


@pytest.mark.parametrize("scales", [[1.0], [1.0, 0.0], [torch.nan], [1.0, 2.0, 3.0, 3.0]])
def test_plot(scales: list[float], tmp_path: Path) -> None:
    """Catches a plot that warns or fails on one record, zeros or NaN."""
    path = scripted(scales).plot(tmp_path / "t.png")
    assert path.read_bytes()[:4] == b"\x89PNG"
    assert path.stat().st_size > 10_000


def test_bad_input() -> None:
    """Catches arguments that fail only at the first record."""
    net = network()
    with pytest.raises(TypeError, match="model: expected a torch"):
        se.SpectrumTracker([net])
    with pytest.raises(ValueError, match="every: expected at least 1; got 0"):
        se.SpectrumTracker(net, every=0)
    with pytest.raises(ValueError, match="rank"):
        se.SpectrumTracker(net, rank=0)
    with pytest.raises(ValueError, match="targets 'x'"):
        se.SpectrumTracker(net, targets="x")
    with pytest.raises(ValueError, match="at least one record"):
        se.SpectrumTracker(net).plot("t.png")
    with pytest.raises(ValueError, match="window: expected at least 1; got 0"):
        se.SpectrumTracker(net).stabilised(window=0)
    with pytest.raises(ValueError, match="share"):
        se.SpectrumTracker(net).collapsed(1.0)


@pytest.mark.parametrize("package", ["lightning", "pytorch_lightning"])
def test_lightning_callback(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches batches counted for steps under gradient accumulation, a lost end or state."""
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    fake = types.SimpleNamespace(Callback=type("Callback", (), {}))
    if package == "lightning":
        monkeypatch.setitem(sys.modules, "lightning", types.SimpleNamespace(pytorch=fake))
    monkeypatch.setitem(sys.modules, package + (".pytorch" if package == "lightning" else ""), fake)
    tracker = se.SpectrumTracker(network(), every=2)
    callback = lightning_callback(tracker)
    assert isinstance(callback, fake.Callback)
    trainer = types.SimpleNamespace(global_step=0)
    callback.on_train_start(trainer, None)
    for batch in range(10):
        trainer.global_step = (batch + 1) // 2
        callback.on_train_batch_end(trainer, None, None, None, batch)
    callback.on_train_end(trainer, None)
    assert tracker.steps.tolist() == [0, 2, 4, 5]
    other = se.SpectrumTracker(network(), every=2)
    lightning_callback(other).load_state_dict(callback.state_dict())
    assert other.count == 5


def test_trainer_callback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a Trainer's events mistaken, and a callback that is none of its class."""
    fake = types.SimpleNamespace(TrainerCallback=type("TrainerCallback", (), {}))
    monkeypatch.setitem(sys.modules, "transformers", fake)
    tracker = se.SpectrumTracker(network(), every=2)
    callback = trainer_callback(tracker)
    assert isinstance(callback, fake.TrainerCallback)
    state = types.SimpleNamespace(global_step=0)
    callback.on_train_begin(None, state, None, model=None)
    for _ in range(3):
        state.global_step += 1
        callback.on_step_end(None, state, None)
    callback.on_train_end(None, None, None)
    assert tracker.steps.tolist() == [0, 2, 3]


def test_missing_frameworks_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an import at the top of the module, or a bare ModuleNotFoundError."""
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    tracker = se.SpectrumTracker(network())
    with pytest.raises(ModuleNotFoundError, match="needs lightning: pip install lightning"):
        lightning_callback(tracker)
    with pytest.raises(ModuleNotFoundError, match="needs transformers: pip install transformers"):
        trainer_callback(tracker)


def test_trainings_that_go_on_are_counted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches steps of a resumed training counted from 0, one weight recorded as several steps, a
    second training of which nothing is recorded, and two trackers that take each other's state."""
    fake = types.SimpleNamespace(Callback=type("Callback", (), {}))
    monkeypatch.setitem(sys.modules, "lightning", types.SimpleNamespace(pytorch=fake))
    monkeypatch.setitem(sys.modules, "lightning.pytorch", fake)
    monkeypatch.setitem(
        sys.modules, "transformers",
        types.SimpleNamespace(TrainerCallback=type("TrainerCallback", (), {})),
    )  # fmt: skip

    def lightning(tracker: se.SpectrumTracker, first: int, last: int) -> None:
        callback = lightning_callback(tracker)
        trainer = types.SimpleNamespace(global_step=first)
        callback.on_train_start(trainer, None)
        for step in range(first + 1, last + 1):
            trainer.global_step = step
            callback.on_train_batch_end(trainer, None, None, None, step)
        callback.on_train_end(trainer, None)

    def transformers(tracker: se.SpectrumTracker, first: int, last: int) -> None:
        callback = trainer_callback(tracker)
        state = types.SimpleNamespace(global_step=first)
        callback.on_train_begin(None, state, None)
        for _ in range(first, last):
            state.global_step += 1
            callback.on_step_end(None, state, None)
        callback.on_train_end(None, state, None)

    for fit in (lightning, transformers):
        resumed, twice = (se.SpectrumTracker(network(), every=2) for _ in range(2))
        fit(resumed, 4, 8)
        assert resumed.steps.tolist() == [4, 6, 8]
        fit(twice, 0, 4)
        fit(twice, 0, 4)
        assert twice.steps.tolist() == [0, 2, 4, 6, 8]
    keys = {
        lightning_callback(se.SpectrumTracker(network(), targets=target)).state_key
        for target in ("0", "1")
    }
    assert len(keys) == 2


def test_ranks_and_names_of_other_kinds(tmp_path: Path) -> None:
    """Catches an integer of NumPy that JSON refuses once training is over, and a legend without
    the layers of a compiled model, whose names begin with _."""
    net = torch.compile(network(), backend="eager")
    tracker = se.SpectrumTracker(net, rank=np.int64(3))
    tracker.record()
    tracker.save(tmp_path / "t.npz")
    tracker.plot(tmp_path / "t.png")
    assert se.spectrum(np.eye(4), rank=np.int64(64)).S.shape == (4,)
