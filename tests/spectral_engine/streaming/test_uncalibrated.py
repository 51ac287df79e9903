"""Runs without calibration that end early: what is written counts, and the bytes are the same."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import spectral_engine as se
import spectral_engine.compression.file
import spectral_engine.pruning.file
from spectral_engine.checkpoints import draft
from spectral_engine.checkpoints.leftovers import unfinished
from spectral_engine.cli import main
from tests.support.processes import on_processes
from tests.support.streaming.block_models import Decoder, made, write_folder


class Ended(BaseException):
    """Ends a run as a signal would."""


@pytest.fixture(autouse=True)
def noted(monkeypatch):
    """Notes are made after every tensor, as of large ones."""
    monkeypatch.setattr(draft, "NOTE_BYTES", 1)


def write(kind: str, folder: Path) -> Path:
    """A source of this kind, with eight tensors or more."""
    source = folder / f"in{kind}"
    if kind == "":
        return write_folder(made(Decoder), source, shards=3)
    torch.manual_seed(0)
    weights = {f"{i}.weight": torch.randn(4 + i, 12) for i in range(8)}
    weights["tied.weight"] = weights["3.weight"]
    weights["norm"] = torch.randn(5)
    if kind == ".safetensors":
        save_file({**weights, "tied.weight": weights["3.weight"].clone()}, source)
    elif kind == ".npz":
        np.savez(source, **{name: one.numpy() for name, one in weights.items()})
    else:
        torch.save(weights, source)
    return source


def end_at(monkeypatch, at: int, begun: list[str]) -> None:
    """Runs end when they begin with a tensor; all are noted."""
    own = spectral_engine.pruning.file._prune_in

    def prune(plan, layer, *others):
        begun.append(layer.name)
        if len(begun) == at:
            raise Ended
        return own(plan, layer, *others)

    monkeypatch.setattr(spectral_engine.pruning.file, "_prune_in", prune)


def content(path: Path) -> dict[str, bytes]:
    if path.is_file():
        return {"": path.read_bytes()}
    return {one.name: one.read_bytes() for one in path.iterdir()}


@pytest.mark.parametrize(
    ("kind", "suffix", "again"),
    [
        ("", "", 1),
        (".safetensors", ".safetensors", 1),
        (".pt", ".safetensors", 1),
        (".pt", ".pt", 5),
        (".npz", ".npz", 5),
    ],
)
def test_what_is_written_is_not_made_again(tmp_path, monkeypatch, kind, suffix, again):
    """Catches bytes that differ behind the place where a run went on, a tensor that is copied
    unpruned, rows that are lost, and work that is done again: of a format whose bytes change as it
    is written all, of others the tensor at hand."""
    source = write(kind, tmp_path)
    target = tmp_path / f"out{suffix}"
    whole = se.prune_file(source, tmp_path / f"whole{suffix}", "principal", 0.5, seed=3)
    begun: list[str] = []
    with monkeypatch.context() as patch:
        end_at(patch, 5, begun)
        with pytest.raises(Ended):
            se.prune_file(source, target, "principal", 0.5, seed=3)
    assert not target.exists()
    shown: list[str] = []
    with monkeypatch.context() as patch:
        end_at(patch, -1, more := [])
        report = se.prune_file(
            source, target, "principal", 0.5, seed=3, progress=lambda row: shown.append(row.name),
            resume="required" if again == 1 else "auto",
        )  # fmt: skip
    assert len({*begun} & {*more}) == again
    assert content(target) == content(tmp_path / f"whole{suffix}")
    names = [row.name for row in whole.layers]
    assert [row.name for row in report.layers] == names
    assert [row.nnz for row in report.layers] == [row.nnz for row in whole.layers]
    assert sorted(shown) == sorted(names)
    assert not unfinished(target).exists()


def test_a_run_of_something_else_is_refused(tmp_path, monkeypatch):
    """Catches a target half of which is pruned by one recipe and half by another."""
    source, target = write(".safetensors", tmp_path), tmp_path / "out.safetensors"
    with monkeypatch.context() as patch:
        end_at(patch, 5, [])
        with pytest.raises(Ended):
            se.prune_file(source, target, "principal", 0.5)
    with pytest.raises(ValueError, match="was with another recipe"):
        se.prune_file(source, target, "magnitude", 0.5)
    [path] = (unfinished(target) / "draft").iterdir()
    path.write_bytes(b"cut")
    with pytest.raises(FileNotFoundError, match="expected what an earlier run has written"):
        se.prune_file(source, target, "principal", 0.5)
    se.prune_file(source, target, "magnitude", 0.5, resume="never")
    assert not unfinished(target).exists()


def test_small_files_leave_nothing(tmp_path, monkeypatch):
    """Catches an unfinished folder beside a file that is pruned again in a moment."""
    source, target = write(".safetensors", tmp_path), tmp_path / "out.safetensors"
    monkeypatch.setattr(draft, "NOTE_BYTES", 1 << 28)
    end_at(monkeypatch, 5, [])
    with pytest.raises(Ended):
        se.prune_file(source, target, "principal", 0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["in.safetensors"]


@pytest.mark.parametrize("at", ["prune", "compress"])
def test_a_compressed_run_goes_on(tmp_path, monkeypatch, at):
    """Catches `--compress` that prunes again what was pruned, and that leaves the dense file."""
    source = write("", tmp_path)
    monkeypatch.chdir(tmp_path)
    words = ["prune", "in", "--recipe", "principal", "--sparsity", "0.9", "--compress"]

    def run(target: str, *more: str) -> None:
        monkeypatch.setattr("sys.argv", ["spectral-engine", *words, "-o", target, *more])
        with pytest.raises(SystemExit) as left:
            main()
        assert not left.value.code

    run("whole")
    begun: list[str] = []
    with monkeypatch.context() as patch:
        if at == "prune":
            end_at(patch, 9, begun)
        else:
            end_at(patch, -1, begun)
            patch.setattr(spectral_engine.compression.file, "compress_file", _ended)
        with pytest.raises(Ended):
            run("out")
    with monkeypatch.context() as patch:
        end_at(patch, -1, more := [])
        run("out", "--resume", "required")
    assert len({*begun} & {*more}) == (at == "prune")
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [source.name, "out", "whole"]


def _ended(*_, **__):
    raise Ended


PROGRAM = """
import json
import spectral_engine as se
import spectral_engine.pruning.file as pruning
from spectral_engine.checkpoints import draft
draft.NOTE_BYTES = 1
end, own, begun = int(arguments[2]), pruning._prune_in, []
def prune(plan, layer, *others):
    begun.append(layer.name)
    if len(begun) == end:
        os._exit(0) if rank == 0 else leave()
    return own(plan, layer, *others)
pruning._prune_in = prune
try:
    with se.share_work():
        recipe = se.Recipe(se.Principal(), budget=se.Global(0.5))
        report = se.prune_file(*arguments[:2], recipe, seed=3)
    print(json.dumps([begun, [[one.name, one.nnz] for one in report.layers]]))
except RuntimeError:  # the other one is gone
    if end < 0:
        raise
leave()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_processes_go_on(tmp_path):
    """Catches tensors of an earlier run that are shared out again, and that only as many processes
    can finish what some have begun."""
    source, target = write(".safetensors", tmp_path), tmp_path / "out.safetensors"
    on_processes(2, PROGRAM, str(source), str(target), "3")
    assert unfinished(target).is_dir()
    outputs = on_processes(3, PROGRAM, str(source), str(target), "-1")
    found = [json.loads(output.splitlines()[-1]) for output in outputs]
    recipe = se.Recipe(se.Principal(), budget=se.Global(0.5))
    report = se.prune_file(source, tmp_path / "one.safetensors", recipe, seed=3)
    assert all(rows == [[one.name, one.nnz] for one in report.layers] for _, rows in found)
    assert sum(len(begun) for begun, _ in found) < len(report.layers)
    assert content(target) == content(tmp_path / "one.safetensors")
    assert load_file(target).keys() == load_file(source).keys()
