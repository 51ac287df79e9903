"""Runs that end early: what they have done counts, and the next run ends in the same bytes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import spectral_engine as se
import spectral_engine.streaming.api
import spectral_engine.streaming.folder
from spectral_engine.checkpoints.leftovers import unfinished
from spectral_engine.streaming.run import Streaming
from tests.support.streaming.block_models import (
    Decoder,
    batches,
    made,
    without_weights,
    write_folder,
)


class Ended(BaseException):
    """Ends a run as a signal would."""


@pytest.fixture
def source(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(
        spectral_engine.streaming.folder,
        "model_of_folder",
        lambda *_, **__: (without_weights(Decoder), "Decoder"),
    )
    return write_folder(made(Decoder), tmp_path / "in")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def end_at(monkeypatch, at: int, steps: list[int]) -> None:
    """Runs end when they begin with a step; all steps are noted."""
    own = Streaming._step

    def step(self, relay, survey, number, *others):
        steps.append(number)
        if number == at:
            raise Ended
        return own(self, relay, survey, number, *others)

    monkeypatch.setattr(Streaming, "_step", step)


def test_killed_runs_end_in_the_same_bytes(tmp_path):
    """Catches a run that is ended by SIGKILL, SIGTERM or a full disk and leaves a half-written
    target, loses more than a step, or ends in other bytes than one that is left alone."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.streaming.kills", str(tmp_path), "4", "2"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert sum(seen["ended"].values()) >= 2
    assert seen["steps lost an end"] <= 1


def test_only_what_was_not_done_is_done(tmp_path, source, monkeypatch):
    """Catches steps that are done again, rows of the earlier run that the report lacks, and an
    unfinished folder that stays."""
    target, steps = tmp_path / "out", []
    options = {"calibration": batches(), "seed": 3}
    whole = se.prune_file(source, tmp_path / "whole", "wanda", 0.5, **options)
    with monkeypatch.context() as patch:
        end_at(patch, 3, steps)
        with pytest.raises(Ended):
            se.prune_file(source, target, "wanda", 0.5, **options)
        assert steps == [0, 1, 2, 3]
    assert unfinished(target).is_dir()
    assert not target.exists()
    shown: list[str] = []
    with monkeypatch.context() as patch:
        end_at(patch, -1, steps := [])
        report = se.prune_file(
            source, target, "wanda", 0.5, **options, resume="required",
            progress=lambda row: shown.append(row.name),
        )  # fmt: skip
    assert steps == [3, 4]
    assert content(target) == content(tmp_path / "whole")
    assert [row.name for row in report.layers] == [row.name for row in whole.layers]
    assert sorted(shown) == sorted(row.name for row in whole.layers)
    assert report.calibration == whole.calibration
    assert not unfinished(target).exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"recipe": "sparsegpt"}, "another recipe"),
        ({"sparsity": 0.6}, "another recipe"),
        ({"seed": 1}, "another seed"),
        ({"ignore": "head"}, "another layers"),
        ({"calibration": batches(seed=2)}, "another calibration"),
        ({"touched": True}, "another source"),
        ({"versions": "2.0"}, "another versions: another transformers"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_unfinished_run_of_something_else_is_refused(
    tmp_path, source, monkeypatch, change, said
):
    """Catches a run that goes on from one of other inputs, and an error that does not say which."""
    target = tmp_path / "out"
    arguments = {"recipe": "wanda", "sparsity": 0.5, "calibration": batches()}
    with monkeypatch.context() as patch:
        end_at(patch, 1, [])
        with pytest.raises(Ended):
            se.prune_file(source, target, **arguments)
    if change.pop("touched", False):
        path = next(source.glob("*.safetensors"))
        os.utime(path, (1, 1))
    if "versions" in change:
        now = {"transformers": change.pop("versions")}
        monkeypatch.setattr(spectral_engine.streaming.api, "versions", lambda: now)
    with pytest.raises(ValueError, match=f"resume: the unfinished run on .* was with {said}"):
        se.prune_file(source, target, **{**arguments, **change})
    se.prune_file(source, target, **{**arguments, **change}, resume="never")
    assert target.is_dir()
    assert not unfinished(target).exists()


def test_a_run_that_did_nothing_leaves_nothing(tmp_path, source, monkeypatch):
    """Catches a folder left behind by an error before the first step was done."""
    end_at(monkeypatch, 0, [])
    with pytest.raises(Ended):
        se.prune_file(source, tmp_path / "out", "wanda", 0.5, calibration=batches())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_two_runs_on_one_target(tmp_path, source, monkeypatch):
    """Catches a run that takes over what another one is working on."""
    target = tmp_path / "out"
    inside: list[str] = []

    def also(row) -> None:
        if not inside:
            inside.append(row.name)
            with pytest.raises(BlockingIOError, match="another run is writing it"):
                se.prune_file(source, target, "wanda", 0.5, calibration=batches())

    se.prune_file(source, target, "wanda", 0.5, calibration=batches(), progress=also)
    assert inside
    assert target.is_dir()


def test_an_uncalibrated_run_leaves_an_unfinished_one_alone(tmp_path, source, monkeypatch):
    """Catches a run on the same target that removes hours of another one's work as litter."""
    target = tmp_path / "out"
    with monkeypatch.context() as patch:
        end_at(patch, 2, [])
        with pytest.raises(Ended):
            se.prune_file(source, target, "wanda", 0.5, calibration=batches())
    se.prune_file(source, target, "magnitude", 0.5)
    assert unfinished(target).is_dir()
