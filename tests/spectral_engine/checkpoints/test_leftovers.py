"""What killed and competing runs leave: targets whole, temporaries found, runs alive left alone."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spectral_engine.checkpoints import (
    atomic,
    leftovers,
    open_checkpoint,
    renaming,
    rewrite,
    termination,
)

ENDINGS = """
import os, signal, sys, torch
from pathlib import Path
from spectral_engine.checkpoints import atomic, rewrite

def double(name, tensor):
    return 2 * tensor

def end(name, tensor):
    os.kill(os.getpid(), NUMBER)
    return tensor

def end_at_rename(number):
    rename, count = os.rename, [0]
    def counted(*paths):
        count[0] += 1
        if count[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(*paths)
    atomic.os.rename = counted
    atomic.exchange = lambda one, other: False

root = Path(sys.argv[1])
jobs = {}
for NUMBER in (signal.SIGTERM, signal.SIGHUP, signal.SIGKILL):
    for kind in ("file", "folder"):
        jobs[f"{NUMBER.name} {kind}"] = (kind, NUMBER, end, None)
for number in (1, 2):
    jobs[f"rename {number}"] = ("folder", None, double, number)
for name, (kind, NUMBER, transform, rename) in jobs.items():
    here = root / name
    source = here / ("in" if kind == "folder" else "in.safetensors")
    target = here / ("out" if kind == "folder" else "out.safetensors")
    process = os.fork()
    if process == 0:
        if rename:
            end_at_rename(rename)
        rewrite(source, target, transform, force=True)
        os._exit(0)
    print(name, os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), sep=":")
"""
KINDS = {f"{s} {k}": k for s in ("SIGTERM", "SIGHUP", "SIGKILL") for k in ("file", "folder")}
KINDS |= {"rename 1": "folder", "rename 2": "folder"}
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def make(here: Path, kind: str, name: str, value: float) -> Path:
    here.mkdir(exist_ok=True)
    tensors = {"a": torch.full((2, 2), value)}
    if kind == "file":
        path = here / f"{name}.safetensors"
        save_file(tensors, path)
    else:
        path = here / name
        path.mkdir()
        save_file(tensors, path / "model.safetensors")
    return path


def value(path: Path) -> float:
    with open_checkpoint(path) as checkpoint:
        return checkpoint.read("a")[0, 0].item()


@needs_fork
def test_runs_that_are_ended(tmp_path):
    """Catches litter after SIGTERM, a signal that no longer ends the process, and a target that
    is gone, or stays beside litter, after the run that follows a kill."""
    for name, kind in KINDS.items():
        make(tmp_path / name, kind, "in", 1)
        make(tmp_path / name, kind, "out", 7)
    done = subprocess.run(
        [sys.executable, "-c", ENDINGS, tmp_path], capture_output=True, text=True, check=True
    )
    codes = dict(line.split(":") for line in done.stdout.splitlines())
    assert codes.keys() == KINDS.keys()
    for name in KINDS:
        here = tmp_path / name
        source = next(here.glob("in*"))
        target = here / source.name.replace("in", "out")
        word = name.split()[0]
        number = signal.SIGKILL if word == "rename" else signal.Signals[word]
        assert int(codes[name]) == -number, name
        if word in ("SIGTERM", "SIGHUP"):
            assert len(os.listdir(here)) == 2, name
        if name == "rename 2":
            assert not target.exists()
            assert value(target) == 7  # Opening it puts it back.
        assert value(target) == 7
        for partial in here.glob(".*"):  # Not a moment ago.
            os.utime(partial, (0, 0))
        rewrite(source, target, lambda _, tensor: 3 * tensor, force=True)
        assert value(target) == 3
        assert len(os.listdir(here)) == 2, name


def test_killed_in_place_between_renames(tmp_path):
    """Catches a source that is also the target, and is nowhere after a kill between renames."""
    source = make(tmp_path, "folder", "in", 5)
    source.rename(leftovers.temporary(source, leftovers.REPLACED))
    partial = leftovers.temporary(source, leftovers.PARTIAL)
    make(tmp_path, "folder", partial.name, 9)
    rewrite(source, source, lambda name, tensor: 2 * tensor, force=True)
    assert value(source) == 10
    assert os.listdir(tmp_path) == ["in"]


def test_temporary_in_use_is_left_alone(tmp_path):
    """Catches the temporary of a run that is alive, or of another target, removed."""
    source = make(tmp_path, "file", "in", 1)
    target, other = tmp_path / "out.safetensors", tmp_path / "other.safetensors"
    foreign = leftovers.temporary(other, leftovers.PARTIAL)
    foreign.write_bytes(b"x")
    with atomic.replacing_file(target, force=True) as file:
        file.write(b"mine")
        file.flush()
        rewrite(source, target, lambda name, tensor: None, force=True)
        assert sum(path.suffix == ".partial" for path in tmp_path.iterdir()) == 2
    assert target.read_bytes() == b"mine"
    assert foreign.exists()
    rewrite(source, other, lambda name, tensor: None)
    assert not foreign.exists()


def test_temporary_just_made_is_left_alone(tmp_path):
    """Catches a file removed in the moment between being made and being locked."""
    target = tmp_path / "out.safetensors"
    new = leftovers.temporary(target, leftovers.PARTIAL)
    new.touch()
    leftovers.recover(target)
    assert new.exists()
    os.utime(new, (0, 0))
    leftovers.recover(target)
    assert not new.exists()


def test_partial_files_are_not_copied_on(tmp_path):
    """Catches what a killed run left inside a checkpoint folder copied into each later one."""
    source = make(tmp_path, "folder", "in", 1)
    leftovers.temporary(source / "model.safetensors", leftovers.PARTIAL).write_bytes(bytes(9))
    leftovers.temporary(source / "sub", leftovers.PARTIAL).mkdir()
    with open_checkpoint(source) as checkpoint:
        assert checkpoint.other_weights() == {}
    rewrite(source, tmp_path / "out", lambda name, tensor: None)
    assert os.listdir(tmp_path / "out") == ["model.safetensors"]


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("lacking", [False, True], ids=["renameat2", "without"])
def test_two_runs_to_one_new_target(kind, lacking, tmp_path, monkeypatch):
    """Catches two runs that both say done: the target is looked at, then replaced."""
    if lacking:
        monkeypatch.setattr(renaming, "_rename", lambda source, target, flag: False)
    source = make(tmp_path, kind, "in", 1)
    target = tmp_path / source.name.replace("in", "out")
    barrier = threading.Barrier(4, timeout=60)
    outcomes = []

    def run(number: int) -> None:
        def transform(name, tensor):
            barrier.wait()
            return tensor * number

        try:
            rewrite(source, target, transform)
        except FileExistsError:
            outcomes.append(0)
        else:
            outcomes.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [winner] = [number for number in outcomes if number]
    assert value(target) == winner
    assert len(os.listdir(tmp_path)) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is Linux's")
def test_folders_are_exchanged_in_one_step(tmp_path, monkeypatch):
    """Catches a window without a target where the system can exchange names."""
    source, target = make(tmp_path, "folder", "in", 1), make(tmp_path, "folder", "out", 7)
    if not renaming.exchange(source, target):
        pytest.skip("a file system that cannot")
    renaming.exchange(source, target)

    def never(*paths):
        raise AssertionError("a folder was renamed, not exchanged")

    monkeypatch.setattr(atomic.os, "rename", never)
    rewrite(source, target, lambda name, tensor: 2 * tensor, force=True)
    assert load_file(target / "model.safetensors")["a"][0, 0] == 2


def test_signal_while_the_target_is_replaced(tmp_path, monkeypatch):
    """Catches an old folder half removed, or left aside, by SIGTERM in the moment of the swap."""
    source, target = make(tmp_path, "folder", "in", 1), make(tmp_path, "folder", "out", 7)
    rmtree, killed = leftovers.shutil.rmtree, []

    def interrupted(path):
        signal.raise_signal(signal.SIGTERM)
        rmtree(path)

    monkeypatch.setattr(leftovers.shutil, "rmtree", interrupted)
    monkeypatch.setattr(termination.os, "kill", lambda *arguments: killed.append(arguments))
    with pytest.raises(termination._Ended):
        rewrite(source, target, lambda name, tensor: 2 * tensor, force=True)
    assert killed == [(os.getpid(), signal.SIGTERM)]
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]
    assert value(target) == 2


def test_signals_are_given_back(tmp_path):
    """Catches a handler of the program replaced, or the module's own left behind."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with atomic.replacing_file(tmp_path / "x", force=False):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
