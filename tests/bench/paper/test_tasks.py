"""The paper's tasks, end to end on small made-up images; that a run which was stopped goes on."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import spectral_engine as se
from bench import tidy
from bench.paper.reporting import correlations
from bench.paper.reporting.output import Result
from bench.paper.reproduce import TASKS, reproduce
from bench.paper.runs import dense, jobs
from bench.paper.runs.jobs import Settings
from bench.paper.tasks import headtohead, iterative, learning, methods, oneshot
from bench.paper.tasks.plans import Plan
from bench.paper.tasks.sweeps import sweep
from bench.paper.training import data, networks, store
from bench.paper.training import loop as training
from bench.quality.networks import efficientnet
from bench.quality.networks.network import Network
from bench.tables import Table
from spectral_engine import cli

# Each task


@pytest.fixture
def trained_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small network in the place of EfficientNet-Lite0, which a package carries."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 50)).eval()
    images = torch.randn(100, 1, 8, 8)
    dense = efficientnet.classify(model, images)

    def score(pruned: nn.Module) -> dict[str, float]:
        return efficientnet.compare(dense, efficientnet.classify(pruned, images))

    network = Network("small", model, [], score, "noise", ignore=["0"])
    monkeypatch.setattr(efficientnet, "load", lambda _packages: network)


@pytest.mark.usefixtures("trained_elsewhere")
@pytest.mark.parametrize("task", sorted(TASKS))
def test_each_task_runs_and_writes_its_files(task: str, make: Callable[..., Settings]) -> None:
    """Catches a task that does not run, a table of NaN, numbers without seeds or versions, and
    tables of numbers that the file does not have.
    """
    result, written = reproduce(task, make(seeds=2))
    head, rows = tidy.read(written[0])
    text = written[1].read_text()
    assert [path.suffix for path in written] == [".csv", ".md", ".png"]
    assert head["seeds"] == ("0" if task == "efficientnet" else "0 1")
    assert head["command"].startswith(f"spectral-engine reproduce {task}")
    assert all(name in head["versions"] for name in ("torch 2", "numpy 2", "spectral-engine 0"))
    assert str(rows) == str(result.rows)  # as text, in which a NaN is equal to itself
    assert written[2].read_bytes()[:4] == b"\x89PNG"
    assert "nan" not in text
    assert all(len(table.rows) > 0 for table in result.tables)
    for row in (row for table in result.tables for row in table.rows):
        assert any(character.isdigit() for character in "".join(row[1:]))


@pytest.mark.parametrize("network", ["lenet-5", "vgg19", "vgg19-bn", "gru"])
def test_every_network_trains_and_is_pruned(network: str, make: Callable[..., Settings]) -> None:
    """Catches images of the wrong shape, and layers of a network that are not seen or pruned."""
    settings = make(network=network, subset=128, width=0.0625, seeds=1)
    found = iterative.one(settings, 0, Plan("x", ((0.5, 1),), 1e-3, 0.0))
    kept = found["rounds"][0]["kept"]
    weights = {name for name, size in found["sizes"].items() if name.split(".")[-1] == "weight"}
    assert len(kept) >= 3
    if network != "gru":
        model = dense.build(settings, 0)
        expected = {name for name in weights if model.get_parameter(name).ndim > 1}
        assert set(kept) == expected
    assert "width 0.0625" in settings.label
    assert "128 training images" in settings.label


def test_full_size_networks_have_the_known_sizes() -> None:
    """Catches a layer too few or too wide. LeNet-300-100 266,610 and LeNet-5 of Caffe 431,080
    parameters; VGG19's convolutions 20,018,880 weights, of 64 to 512 channels.
    """
    counts = {
        name: sum(weight.numel() for weight in networks.NETWORKS[name].build(1.0).parameters())
        for name in ("lenet-300-100", "lenet-5")
    }
    assert counts == {"lenet-300-100": 266_610, "lenet-5": 431_080}
    vgg = networks.NETWORKS["vgg19"].build(1.0)
    convolutions = [layer for layer in vgg if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 16
    assert sum(layer.weight.numel() for layer in convolutions) == 20_018_880


# Stopped and taken up


class StoppedError(Exception):
    """As good as a kill: nothing after it runs."""


def stopped_then_resumed(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, run: Callable[[Settings], Any], stops: int
) -> Any:
    """Run, and raise after each epoch in turn until it is through."""
    saved = training.Training._save
    count = 0

    def save_and_stop(self: training.Training, *arguments: Any) -> None:
        nonlocal count
        saved(self, *arguments)
        count += 1
        if count <= stops:
            raise StoppedError

    monkeypatch.setattr(training.Training, "_save", save_and_stop)
    for _ in range(stops):
        with pytest.raises(StoppedError):
            run(settings)
    result = run(settings)
    assert count > stops
    return result


@pytest.mark.parametrize("task", ["learning", "iterative", "headtohead"])
def test_a_stopped_run_goes_on_with_the_same_result(
    task: str, make: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches optimiser, generator, tracker, pruner or early weights lost when taken up again."""
    plan = Plan("x", ((0.5, 2), (0.8, 2)), 1e-3, 0.0, "randomized")
    runs: dict[str, Callable[[Settings], Any]] = {
        "learning": lambda settings: learning.one(settings, "cosine", 0),
        "iterative": lambda settings: iterative.one(settings, 0, plan),
        "headtohead": lambda settings: headtohead.one(settings, 0, "ticket", 0.8),
    }
    # A convolution's weights are not in the order of their indices in memory.
    network = "lenet-5" if task == "iterative" else "lenet-300-100"
    settings = replace(make(seeds=1, subset=200, network=network), quick=False, epochs=3, width=1.0)
    whole = runs[task](replace(settings, cache=tmp_path / "whole"))
    again = stopped_then_resumed(
        monkeypatch, replace(settings, cache=tmp_path / "stopped"), runs[task], 2
    )
    assert again == whole


def test_a_ticket_stopped_after_its_pruning(
    make: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches the accuracy right after pruning lost by the process that pruned."""
    settings = replace(make(seeds=1, subset=200, network="lenet-300-100"), quick=False, epochs=2)
    monkeypatch.setattr(headtohead, "RETRAIN", 3)
    whole = headtohead.one(replace(settings, cache=tmp_path / "whole"), 0, "ticket", 0.8)
    again = stopped_then_resumed(
        monkeypatch, replace(settings, cache=tmp_path / "stopped"),
        lambda settings: headtohead.one(settings, 0, "ticket", 0.8), 4,
    )  # fmt: skip
    assert again == whole
    assert whole["pruned"] > 0.0


def test_a_retraining_is_of_one_dense_network(
    make: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a finished retraining taken for that of a network that was trained for longer."""
    monkeypatch.setattr(headtohead, "RETRAIN", 1)
    settings = replace(make(seeds=1, subset=200, network="lenet-300-100"), quick=False)
    folders = []
    monkeypatch.setattr(headtohead, "tested", lambda settings, model: 0.5)
    found = Settings.folder

    def noted(self: Settings, *inputs: Any) -> Path:
        folder = found(self, *inputs)
        if inputs[0] == "headtohead":
            folders.append(folder)
        return folder

    monkeypatch.setattr(Settings, "folder", noted)
    for epochs in (1, 2):
        headtohead.one(replace(settings, epochs=epochs), 0, "magnitude", 0.8)
    assert len(set(folders)) == 2


def test_a_cache_of_other_versions_is_left_alone(
    make: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches results of another version of torch or of this code passed off as this one's."""
    settings = make()
    folders = [settings.folder("x")]
    monkeypatch.setattr(torch, "__version__", "0.0")
    folders.append(settings.folder("x"))
    monkeypatch.setattr(se, "__version__", "0.0")
    folders.append(settings.folder("x"))
    assert len(set(folders)) == 3


def test_a_part_of_a_sweep_is_not_called_the_whole(
    make: Callable[..., Settings], tmp_path: Path
) -> None:
    """Catches results on some images written over those on all, under the same heading."""
    settings = replace(make(), quick=False, subset=500, width=1.0, out=tmp_path)
    result = Result("depth", settings, [], [Table("t", ("a",))], {}, subject="perceptrons")
    written = result.write()
    assert [path.name for path in written] == ["depth-subset500.csv", "depth-subset500.md"]
    assert "perceptrons, 500 training images" in written[1].read_text()
    head, _ = tidy.read(written[0])
    assert head["subject"] == "perceptrons, 500 training images"
    assert head["command"] == "spectral-engine reproduce depth --subset 500"


def test_workers_do_not_change_the_result(make: Callable[..., Settings], tmp_path: Path) -> None:
    """Catches a result that depends on the process it was computed in."""
    alone = learning.run(make(seeds=2)).rows
    assert alone == learning.run(make(seeds=2, cache=tmp_path, workers=2)).rows


def test_a_finished_run_is_not_computed_again(
    make: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a cache that is not used, or used for other settings."""
    settings = make(seeds=1)
    oneshot.one(settings, 0, methods.PLAIN[0])

    def refuse(*_: Any) -> None:
        raise StoppedError

    monkeypatch.setattr(training.Training, "_epoch", refuse)
    assert oneshot.one(settings, 0, methods.PLAIN[0])
    with pytest.raises(StoppedError):
        oneshot.one(replace(settings, subset=99), 0, methods.PLAIN[0])


# Parts


def test_trees_come_back(tmp_path: Path) -> None:
    """Catches keys that turn into strings, shared tensors, or a half-written file."""
    tensor = torch.arange(4.0)
    tree = {"a": [tensor, {3: tensor[:2], "x": None}], "b": 0.5, "c": {}, "d": True}
    store.save_tree(tmp_path / "t", tree)
    found = store.load_tree(tmp_path / "t")
    assert torch.equal(found["a"][0], tensor)
    assert torch.equal(found["a"][1][3], tensor[:2])
    assert (found["a"][1]["x"], found["b"], found["c"], found["d"]) == (None, 0.5, {}, True)
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_parts_of_the_data_do_not_overlap(images: Path) -> None:
    """Catches validation images that are trained on, and a subset that takes from validation."""
    found = data.load(images, 100)
    train = {image.numpy().tobytes() for image in found.train.images}
    held = {image.numpy().tobytes() for image in found.validation.images}
    assert (len(found.train), len(found.validation), len(found.test)) == (100, 50, 200)
    assert not train & held
    whole = data.load(images)
    assert len(whole.train) == 550
    assert torch.equal(whole.validation.images, found.validation.images)
    with pytest.raises(ValueError, match="subset: expected 1 to 550"):
        data.load(images, 551)


def test_padding_for_vgg() -> None:
    """Catches padding that is not black, and channels that differ."""
    image = torch.full((1, 28, 28), 255, dtype=torch.uint8)
    found = data.padded(image)
    assert found.shape == (1, 3, 32, 32)
    assert torch.equal(found[:, 0], found[:, 2])
    assert found[0, 0, 0, 0] == data.normalise(torch.zeros(1, dtype=torch.uint8))
    assert found[0, 0, 2, 2] == data.normalise(image)[0, 0, 0]


def test_learning_rates() -> None:
    """Catches a schedule that does not start at the rate, end near zero, or warm up."""
    for schedule, last in (("cosine", 0.0), ("linear", 0.0), ("step", 1e-3), ("constant", 0.1)):
        recipe = training.Recipe(1, 0.1, schedule=schedule, warmup=0.2)
        assert recipe.rate_at(0.1) == pytest.approx(0.05)
        assert recipe.rate_at(0.2) == pytest.approx(0.1)
        assert recipe.rate_at(1.0 - 1e-9) == pytest.approx(last, abs=1e-7)


def test_course_of_singular_values() -> None:
    """Catches a settling time that counts a pause for the end, or the wrong epoch."""
    first = np.array([4.0, 1.0, 1.0, 2.0, 2.0])
    values = np.stack([first, np.full(5, 1.0)], axis=1)
    found = learning.course(values, np.arange(5.0))
    assert found["value_settled"] == {"0": 3.0, "1": 0.0}
    assert found["distance"][0] == pytest.approx(2.0 / np.sqrt(5.0))
    assert found["distance"][-1] == 0.0


def test_correlations_across_methods_and_over_draws() -> None:
    """Catches seeds or sparsities pooled that must not be, and an error taken for another."""
    rows = [
        {"seed": seed, "setting": name, "requested": sparsity, "draw": 0,
         "test": 0.9 - error - 0.1 * sparsity + 0.3 * seed, "rescaled": False,
         "spectral": error, "frobenius": 1.0 - error, "values": error}
        for seed in range(3)
        for sparsity in (0.5, 0.9)
        for name, error in (("a", 0.1), ("b", 0.2), ("c", 0.4))
    ]  # fmt: skip
    for found in correlations.across(rows):
        assert found["spectral"].estimate == -1.0
        assert found["frobenius"].estimate == 1.0
        assert found["better"].estimate == 0.0
    assert [one["setting"] for one in correlations.over_sparsities(rows)] == ["a", "b", "c"]
    draws = [row | {"setting": "a"} for row in rows]
    assert [one["spectral"].estimate for one in correlations.over_draws(draws)] == [-1.0, -1.0]


def test_sparsity_at_which_accuracy_is_lost() -> None:
    """Catches a limit at the grid point instead of between two, or beyond a first loss."""
    assert sweep.limit(0.9, (0.5, 0.9), (0.9, 0.88)) == pytest.approx(0.7)
    assert sweep.limit(0.9, (0.5, 0.9), (0.9, 0.9)) == 0.9
    assert sweep.limit(0.9, (0.5, 0.9), (0.88, 0.9)) == pytest.approx(0.25)


@pytest.mark.parametrize("name", headtohead.METHODS)
def test_every_method_reaches_the_sparsity(name: str, make: Callable[..., Settings]) -> None:
    """Catches a method that keeps more than the others, which would not be equal terms."""
    settings = make()
    if name == "ticket":
        return
    model = dense.build(settings, 0)
    act = headtohead.at_start if name in headtohead.AT_START else headtohead.after_training
    act(name, settings, model, 0, 0.8)
    weights = [weight for weight in model.parameters() if weight.ndim > 1]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    assert zeros / sum(weight.numel() for weight in weights) == pytest.approx(0.8, abs=5e-3)
    assert set(se.masks(model)) == {"fc1.weight", "fc2.weight", "fc3.weight"}


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nothing"], "task: expected one of"),
        (["learning", "--network", "alexnet"], "network: expected one of lenet-300-100"),
        (["learning", "--data", "no-such-folder"], "dataset-fashion-mnist"),
        (["learning", "--width", "2"], "width: lenet-300-100 comes at width 1 only"),
        (["learning", "--seeds", "0"], "seeds: expected 1 or more; got 0"),
        (["learning", "--subset", "9999"], "subset: expected 1 to 550"),
        (["depth", "--network", "vgg19"], "network: task 'depth' has networks of its own"),
        (["learning", "--device", "gpu"], "device: expected one of auto, cpu, cuda; got 'gpu'"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], expected: str, images: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Catches a trace, a message that does not say what was expected, or how to get the data."""
    folders = ["--out", tmp_path / "out", "--cache", tmp_path / "cache", "--workers", "1"]
    given = ["--data", images, *arguments] if "--data" not in arguments else arguments
    given = [arguments[0], *(one for one in given if one != arguments[0])]
    monkeypatch.setattr(sys, "argv", ["spectral-engine", "reproduce", *map(str, given + folders)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr().err
    assert end.value.code == 1
    assert expected in said
    assert said.count("\n") == 1


def test_outside_a_checkout_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a bare ModuleNotFoundError from an installed package."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "bench"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "bench", None)
    monkeypatch.setattr(sys, "argv", ["spectral-engine", "reproduce", "learning"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "runs from a checkout of the project" in capsys.readouterr().err


def test_threads_are_given_back(make: Callable[..., Settings]) -> None:
    """Catches a process that is left with one thread."""
    before = torch.get_num_threads()
    jobs.run_all(make(), [])
    assert torch.get_num_threads() == before


def test_random_pruning_of_weights_that_are_not_contiguous() -> None:
    """Catches a flat view of a convolution in channels-last memory, as the LeNet-5 trains in."""
    model = nn.Sequential(nn.Conv2d(3, 8, 5)).to(memory_format=torch.channels_last)
    plain = nn.Sequential(nn.Conv2d(3, 8, 5))
    plain.load_state_dict(model.state_dict())
    assert methods.random(model, 0.7, seed=1) == methods.random(plain, 0.7, seed=1) == ["0.weight"]
    assert int((model[0].weight == 0).sum()) == round(0.7 * model[0].weight.numel())
    assert torch.equal(model[0].weight, plain[0].weight)
