"""The README of a folder that was pruned or compressed."""

import json

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import spectral_engine as se
from spectral_engine.cards.front_matter import read_card
from spectral_engine.cli import app

yaml = pytest.importorskip("yaml")


@pytest.fixture
def folder(tmp_path):
    """A Hugging Face style folder with a card of its own."""
    found = tmp_path / "dense"
    found.mkdir()
    torch.manual_seed(0)
    save_file(
        {f"layers.{i}.weight": torch.randn(32, 32) for i in range(2)}, found / "model.safetensors"
    )
    (found / "config.json").write_text(json.dumps({"model_type": "own"}))
    (found / "README.md").write_text("---\nlicense: mit\ntags:\n- chat\n---\n# A model\n\nText.\n")
    return found


def said(folder) -> tuple[dict, str]:
    card = read_card((folder / "README.md").read_text())
    return yaml.safe_load("\n".join(card.front)), card.body


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)


def test_a_folder_tells_what_was_done_to_it(folder, tmp_path):
    """Catches figures that differ from the report's, and a card that loses what it said."""
    pruned, small = tmp_path / "pruned", tmp_path / "small"
    report = se.prune_file(folder, pruned, "spectral", 0.5, measure=True, progress=False)
    path = se.write_model_card(
        pruned, report, base_model="org/model", metrics={"perplexity": 18.25, "a|b": 2}
    )
    assert path == pruned / "README.md"
    front, body = said(pruned)
    own = front["spectral_engine_pruned"]
    assert (front["license"], front["library_name"]) == ("mit", "transformers")
    assert front["base_model"] == "org/model"
    assert front["tags"] == ["chat", "pruned", "spectral-engine"]
    assert own["sparsity"] == round(report.sparsity, 6)
    assert own["nonzero"] == report.nnz
    assert own["recipe"] == repr(report.recipes[0])
    assert own["calibration"] == "none"
    assert own["spectral_error_largest"] == round(max(x.spectral for x in report.layers), 6)
    assert own["metrics"] == {"perplexity": 18.25, "a|b": 2.0}
    assert body.startswith("# A model\n\nText.\n")
    assert "| perplexity | 18.25 |" in body
    assert "| a\\|b | 2.0 |" in body

    compressed = se.compress_file(pruned, small, progress=False)
    se.write_model_card(small, compressed)
    front, body = said(small)
    assert front["spectral_engine_compressed"]["bytes"] == compressed.bytes
    assert front["spectral_engine_pruned"] == own
    assert front["tags"] == ["chat", "pruned", "spectral-engine", "compressed"]
    assert "import spectral_engine" in body
    assert "import spectral_engine" not in said(pruned)[1]


def test_a_second_card_takes_the_place_of_the_first(folder):
    """Catches a card that grows each time."""
    torch.manual_seed(1)
    model = torch.nn.Linear(8, 4)
    report = se.prune(model, "wanda", 0.5, calibration=[torch.randn(16, 8)], progress=False)
    se.write_model_card(folder, report)
    first = (folder / "README.md").read_text()
    se.write_model_card(folder, report)
    assert (folder / "README.md").read_text() == first
    assert said(folder)[0]["spectral_engine_pruned"]["calibration"] == "16 inputs a layer"


def test_the_command_line_writes_one_if_asked(folder, tmp_path):
    """Catches a flag that does nothing, a card that is not asked for, and a file found out to have
    no README after the work."""
    assert run("prune", folder, "-o", tmp_path / "a", "--model-card").exit_code == 0
    assert run("compress", tmp_path / "a", "-o", tmp_path / "b", "--model-card").exit_code == 0
    assert run("prune", folder, "-o", tmp_path / "c").exit_code == 0
    assert {"spectral_engine_pruned", "spectral_engine_compressed"} <= set(said(tmp_path / "b")[0])
    assert (tmp_path / "c" / "README.md").read_text() == (folder / "README.md").read_text()
    (folder / "README.md").unlink()
    assert run("prune", folder, "-o", tmp_path / "d", "--model-card").exit_code == 0
    assert said(tmp_path / "d")[0]["library_name"] == "transformers"
    for command in ("prune", "compress"):
        with pytest.raises(ValueError, match="model_card: expected a folder IN; got"):
            run(command, folder / "model.safetensors", "-o", tmp_path / "e", "--model-card")
        assert not (tmp_path / "e").exists()


def test_odd_arguments_are_refused_by_name(folder, tmp_path):
    """Catches a card half written, or an error that names no argument."""
    report = se.prune_file(folder, tmp_path / "pruned", progress=False)
    for arguments, error in (
        ({"folder": folder / "config.json"}, "folder: expected a folder; got"),
        ({"report": 3}, "report: expected a PruneReport or a CompressReport; got int"),
        ({"base_model": 3}, "base_model: expected a string or None; got int"),
        ({"metrics": [1]}, "metrics: expected names with figures; got list"),
        ({"metrics": {1: 1.0}}, "metrics: expected names as strings; got int"),
        ({"metrics": {"loss": float("nan")}}, "metrics: loss"),
    ):
        with pytest.raises((TypeError, ValueError), match=error):
            se.write_model_card(**{"folder": folder, "report": report, **arguments})
    (folder / "README.md").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"README\.md: expected text in UTF-8"):
        se.write_model_card(folder, report)
