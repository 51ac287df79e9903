"""The demo: its story in one screen, every row of its table, figures that are pictures."""

import importlib
import io
import json
import sys

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from rich.console import Console
from spectral_kernels import LAW_NAMES

import spectral_engine as se
from spectral_engine._util.threads import one_thread
from spectral_engine.cli import main
from spectral_engine.demo import run, story
from spectral_engine.demo.lenet import load_pretrained
from spectral_engine.demo.plots import plot_accuracy, plot_spectrum
from spectral_engine.recipe.methods import METHODS

# `spectral_engine.cli.demo` is the command, which stands before its module.
demo_command = importlib.import_module("spectral_engine.cli.demo")


@pytest.fixture(scope="module")
def row() -> run.DemoRow:
    return run.measure(run.SETTINGS[1], 0.9, seed=0)


def test_every_preset_and_law_is_shown():
    """Catches a preset, a law or a sparsity that the demo leaves out."""
    methods = [setting.recipe.method for setting in run.SETTINGS]
    assert {method.name for method in methods} == set(METHODS)
    laws = {method.law for method in methods if method.name == "randomized"}
    assert laws == set(LAW_NAMES) - {"threshold"}
    assert len({setting.label for setting in run.SETTINGS}) == len(run.SETTINGS)
    assert run.SPARSITIES == (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)


def test_row_is_what_the_library_measures(row):
    """Catches figures of another layer or another network, and a demo with its own arithmetic."""
    model, dense = load_pretrained(), load_pretrained()
    report = se.prune(model, se.Recipe(se.Magnitude(), refit=se.Scale()), 0.9)
    with one_thread():
        found = se.errors(dense.fc1.weight, model.fc1.weight)
    assert row.sparsity == report.sparsity
    assert row.spectral == pytest.approx(found.spectral, rel=1e-4)
    assert row.frobenius == pytest.approx(found.frobenius, rel=1e-4)
    assert row.singular_values == pytest.approx(found.mean_singular_value, rel=1e-4)
    np.testing.assert_allclose(row.before, found.original, rtol=1e-4)
    np.testing.assert_allclose(row.after, found.sparse, rtol=1e-4)
    assert 0.1 < row.accuracy < run.dense_accuracy()
    assert row.milliseconds > 0


def test_measuring_leaves_the_network_and_torch_as_they_were(row):
    """Catches rows that prune what an earlier one has pruned, and threads that stay off."""
    threads = torch.get_num_threads()
    before = run.dense_accuracy()
    run.measure(run.SETTINGS[0], 0.98, seed=0)
    assert run.dense_accuracy() == before
    assert torch.get_num_threads() == threads


def test_table_fits_eighty_columns(row):
    """Catches columns that are cut to an ellipsis, with slow rows too."""
    slow = [
        run.DemoRow(
            **{**vars(row), "setting": setting, "milliseconds": 12345.6, "frobenius": 12.345}
        )
        for setting in run.SETTINGS
    ]
    console = Console(width=demo_command.TABLE_WIDTH, record=True, file=io.StringIO())
    console.print(run.table(slow, 0.89))
    said = console.export_text()
    assert "…" not in said
    for word in (*(setting.label for setting in run.SETTINGS), "Frobenius", "12345.6", "accuracy"):
        assert word in said
    assert max(map(len, said.splitlines())) <= 80


@pytest.fixture(scope="module")
def told() -> story.Story:
    """The story on a few images."""
    return story.Story(images=story.IMAGES + 200)


@pytest.fixture(scope="module")
def outcomes(told) -> list[story.Outcome]:
    return [told.tell(way) for way in story.WAYS]


def test_the_story_is_what_the_library_does(told, outcomes):
    """Catches figures of another network, recipe or sparsity, calibration images that accuracy is
    measured on, and a measure of the spectrum that what is lost does not lower."""
    model = load_pretrained()
    se.prune(model, "auto", 0.9)
    dense, pruned = (one.fc1.weight.detach().double() for one in (load_pretrained(), model))
    U, S, Vh = torch.linalg.svd(dense)
    lost = U[:, :64].T @ (dense - pruned) @ Vh[:64].T
    kept = 1.0 - float(lost.norm() / S[:64].norm())
    assert outcomes[1].kept == pytest.approx(kept, abs=1e-6)
    assert outcomes[1].values.shape == told.values.shape == (64,)
    assert [round(one.sparsity, 2) for one in outcomes] == [0.9, 0.9, 0.9]
    magnitude, no_data, calibrated = (one.accuracy for one in outcomes)
    assert 0.2 < magnitude < no_data <= calibrated + 0.02 <= 1.0
    assert outcomes[0].kept < min(outcomes[1].kept, outcomes[2].kept) < 1.0
    assert len(told.inputs) == 1000
    assert len(told.images) == len(told.labels) == 200
    assert not torch.equal(told.images[0], told.inputs[0])
    assert told.tell(story.WAYS[0], 0.0).kept == pytest.approx(1.0, abs=1e-6)


def test_the_story_fits_a_screen(told, outcomes):
    """Catches a line that wraps, a story that scrolls away, and a gain of the wrong sign."""
    gains = told.gains(outcomes[0], 64)
    assert gains[0].factor == pytest.approx(7.5, rel=0.02)
    assert gains[0].before == 4 * (266_200 + 410)
    assert [gain.before > 0.0 < gain.after for gain in gains] == [True, True, True]
    said = [*story.lines(told, outcomes, gains), *demo_command.NEXT.splitlines()]
    assert len(said) <= 30
    assert max(map(len, said)) <= 80
    slow = story.lines(told, outcomes, [story.Gain("a step", 1e-5, 2e-5)])[-1]
    assert slow.endswith("2.0 x slower, in cache")


def test_figures_are_pictures(told, outcomes, tmp_path):
    """Catches an empty picture, and a line without its name."""
    paths = (
        plot_accuracy([[one] for one in outcomes], told.accuracy, tmp_path / "a.png"),
        plot_spectrum(outcomes, told.values, tmp_path / "b.png"),
    )
    for path in paths:
        picture = imread(path)
        assert min(picture.shape[:2]) > 300
        assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 20


def test_command(monkeypatch, tmp_path, capsys):
    """Catches a command that prints beside its JSON, forgets a way or writes no figures, and a
    folder that cannot be made found out only after all the work."""
    monkeypatch.setattr(story, "WAYS", story.WAYS[:2])
    monkeypatch.setattr(story, "SPARSITIES", (0.9,))
    monkeypatch.setattr(story.Story.gains, "__defaults__", (64,))
    monkeypatch.setattr(run, "SPARSITIES", (0.9,))
    monkeypatch.setattr(run, "SETTINGS", run.SETTINGS[:2])
    (tmp_path / "file").write_text("x")
    ways = [way.label for way in story.WAYS]
    for folder, extra in (
        ("new/deep", []), ("other", ["--json"]), ("file", []), ("none", ["--all", "--json"]),
        ("none", ["--all"]),
    ):  # fmt: skip
        arguments = ["spectral-engine", "demo", "--out", str(tmp_path / folder), *extra]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        if folder == "file":
            assert (left.value.code, out, err.count("\n")) == (1, "", 1)
        elif extra == ["--all", "--json"]:
            found = [row["setting"] for row in json.loads(out)["rows"]]
            assert found == ["magnitude", "magnitude + scale"]
        elif extra == ["--all"]:
            assert out.count("90.00%") == 2
        elif extra:
            assert [way["way"] for way in json.loads(out)["ways"]] == ways
        else:
            assert not left.value.code
            assert all(way in out for way in ways)
            assert sorted(p.name for p in (tmp_path / folder).iterdir()) == [
                "accuracy.png", "report.html", "spectrum.png",
            ]  # fmt: skip
