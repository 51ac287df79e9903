"""The bench of pruning without data: its networks, and a run that goes on."""

from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from bench import tidy
from bench.quality import without_data
from bench.quality.networks import crnn, digits
from bench.quality.networks.network import Network


def test_the_digits_cnn_has_three_convolutions_and_two_linear_layers() -> None:
    """Catches another network than the one that is spoken of, training that learns nothing, and
    digits that are both trained on and measured with."""
    images, labels = digits.digits()
    assert images.shape == (1797, 1, 28, 28)
    assert float(images.min()) >= 0.0
    assert float(images.max()) <= 1.0
    assert sorted(labels.unique().tolist()) == list(range(10))
    found = digits.load(Path(), epochs=1)
    kinds = [type(layer).__name__ for layer in found.model]
    assert (kinds.count("Conv2d"), kinds.count("Linear")) == (3, 2)
    assert found.score(found.model)["accuracy"] > 0.3  # 0.1 by chance
    assert sum(len(batch) for batch in found.calibration) <= digits.TRAINING


def test_ctc_reads_repeats_once() -> None:
    """Catches a letter twice for two steps of it, and one for two with a blank between."""
    a, b = (crnn.CHARACTERS.index(letter) + 1 for letter in "ab")
    assert crnn.spelt([0, a, a, 0, a, b, b, 0]) == "aab"
    assert crnn.spelt([0, 0]) == ""


def test_the_crnn_has_the_checkpoints_shapes() -> None:
    """Catches a layer that the checkpoint has otherwise: its names and sizes, as published."""
    shapes = {name: tuple(value.shape) for name, value in crnn.Crnn().state_dict().items()}
    assert shapes["FeatureExtraction.ConvNet.11.weight"] == (256, 128, 3, 3)
    assert shapes["FeatureExtraction.ConvNet.18.weight"] == (256, 256, 2, 2)
    assert shapes["SequenceModeling.1.rnn.weight_hh_l0_reverse"] == (1024, 256)
    assert shapes["Prediction.weight"] == (97, 256)
    images = crnn.written(["word", "other"], seed=0)
    assert images.shape == (2, 1, 64, 200)
    assert torch.equal(images, crnn.written(["word", "other"], seed=0))
    assert float(images.min()) > -1.3
    assert float(images.max()) < 1.3


def test_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches measurements that are made again, and a file that is not tidy."""
    torch.manual_seed(0)
    network = Network(
        "tiny", nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)), [],
        lambda model: {"kept": float((model[0].weight != 0).float().mean())}, "nothing",
    )  # fmt: skip
    monkeypatch.setattr(without_data, "NETWORKS", {"tiny": lambda packages: network})
    path = tmp_path / "rows.csv"
    command = ["--packages", str(tmp_path), "--results", str(path), "--sparsity", "0.5"]
    app = without_data.typer.Typer()
    app.command()(without_data.main)
    for settings, lines in ((["magnitude"], 3), (["magnitude", "auto"], 5)):
        chosen = [part for one in settings for part in ("--setting", one)]
        result = CliRunner().invoke(app, [*command, *chosen])
        assert result.exit_code == 0, result.output
        head, rows = tidy.read(path)
        assert len(rows) == lines
    assert head["task"] == "without_data"
    assert rows[0] == tidy.Row("tiny", None, "dense", None, "kept", 1)
    assert "judged on" in result.output
