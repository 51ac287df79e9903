"""The command line of a calibrated run."""

import json
import sys

import numpy as np
import pytest

import spectral_engine as se
import spectral_engine.streaming.folder
from spectral_engine.cli import main
from spectral_engine.cli.options import size_of
from tests.support.streaming.block_models import Decoder, made, without_weights, write_folder


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run `prune in -o out` with token ids here; (exit status, standard output, error)."""
    monkeypatch.chdir(tmp_path)
    write_folder(made(Decoder), tmp_path / "in")
    np.save("ids.npy", np.arange(48).reshape(4, 12) % 40)
    monkeypatch.setattr(
        spectral_engine.streaming.folder,
        "model_of_folder",
        lambda *_, **__: (without_weights(Decoder), "Decoder"),
    )

    def run(*arguments: object, recipe: str | None = "wanda") -> tuple[int, str, str]:
        words = ["prune", "in", "-o", "out", "--sparsity", 0.5]
        words += [] if recipe is None else ["--recipe", recipe]
        words += ["--calibration", "ids.npy", "--samples", 3, "--length", 8, *arguments]
        monkeypatch.setattr(sys, "argv", ["spectral-engine", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            main()
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return run


def test_a_run_equals_the_api(call, tmp_path):
    """Catches an option that does not arrive: samples, length, batch, memory."""
    status, out, err = call("--batch", 2, "--max-memory", "50M", "--resume", "never")
    assert status == 0, err
    assert "of memory" in err
    assert out.splitlines()[-1] == "wrote out"
    inputs = se.token_batches(tmp_path, tmp_path / "ids.npy", samples=3, length=8, batch=2)
    se.prune_file("in", "api", "wanda", 0.5, calibration=inputs)
    for path in (tmp_path / "api").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name


def test_calibration_alone_is_used(call):
    """Catches a text that is read and then ignored, since magnitude needs none, and blocks of one
    form that do not share alike as they do in memory."""
    status, out, err = call("--json", recipe=None)
    assert status == 0, err
    [recipe] = json.loads(out)["recipes"]
    assert recipe["refit"]["name"] == "alps"
    assert recipe["budget"]["name"] == "uniform"


def test_a_dry_run_does_nothing(call, tmp_path):
    """Catches a dry run that writes, and an estimate that is not for machines with --json."""
    status, out, _ = call("--dry-run")
    assert status == 0
    assert "of memory" in out
    status, out, _ = call("--dry-run", "--json")
    assert json.loads(out)["samples"] == 24
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ids.npy", "in"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--max-memory", "much"), "max_memory: expected a size such as 2G"),
        (("--max-memory", "1K"), "max_memory: expected at least"),
        (("--resume", "required"), "resume: expected an unfinished run"),
        (("--resume", "required", "--compress"), "resume: expected an unfinished run"),
        (("--length", 100), "expected at least 100 tokens"),
    ],
    ids=["no size", "too small", "nothing to resume", "compressed", "too short"],
)
def test_a_mistake_is_one_line(call, arguments, said):
    """Catches an error that is a traceback, or does not name the option."""
    status, _, err = call(*arguments)
    assert status == 1
    assert said in " ".join(err.split())


def test_sizes():
    """Catches a unit of another power, and a size of nothing."""
    for text, size in (("7", 7), ("2G", 2 * 10**9), ("1.5 MB", 1_500_000), ("3k", 3000)):
        assert size_of("size", text) == size
    for text in ("0", "G", "-1", "2X", "1e3"):
        with pytest.raises(ValueError, match="size: expected a size"):
            size_of("size", text)
