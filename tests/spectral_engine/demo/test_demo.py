"""The demo: every row it promises, a table that fits, plots that are pictures."""

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
from spectral_engine.demo import run
from spectral_engine.demo.lenet import load_pretrained
from spectral_engine.demo.plots import plot_accuracy, plot_spectra
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


def test_plots_are_pictures(row, tmp_path):
    """Catches an empty picture, and a picture that misses its lines."""
    other = run.DemoRow(**{**vars(row), "setting": run.SETTINGS[-1], "after": row.after / 2})
    paths = (
        plot_accuracy([row, other], 0.89, tmp_path / "a.png"),
        plot_spectra([row, other], 0.9, tmp_path / "b.png"),
    )
    for path in paths:
        picture = imread(path)
        assert min(picture.shape[:2]) > 300
        assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 20


def test_command(monkeypatch, tmp_path, capsys):
    """Catches a command that prints beside its JSON, forgets a row or writes no plots, and a folder
    that cannot be made found out only after all the work."""
    monkeypatch.setattr(demo_command, "SPARSITIES", (0.9,))
    monkeypatch.setattr(demo_command, "SETTINGS", run.SETTINGS[:2])
    monkeypatch.setattr(run, "SETTINGS", run.SETTINGS[:2])
    (tmp_path / "file").write_text("x")
    for folder, extra in (("new/deep", []), ("new/deep", ["--json"]), ("file", [])):
        arguments = ["spectral-engine", "demo", "--out", str(tmp_path / folder), *extra]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        if folder == "file":
            assert (left.value.code, out, err.count("\n")) == (1, "", 1)
        elif extra:
            found = json.loads(out)
            assert [r["setting"] for r in found["rows"]] == ["magnitude", "magnitude + scale"]
        else:
            assert not left.value.code
            assert out.count("90.00%") == 2
            assert sorted(p.name for p in (tmp_path / folder).iterdir()) == [
                "accuracy.png", "singular_values.png",
            ]  # fmt: skip
