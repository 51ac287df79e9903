"""A rewrite is whole or not at all: full disks, interrupts, refusals, permissions."""

import contextlib
import errno
import os
import resource
import signal
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from spectral_engine.checkpoints import atomic, open_checkpoint, rewrite

SOURCES = ["in.safetensors", "in.pt", "in.npz", "folder", "in.pt -> out.safetensors"]


def tensors():
    one = torch.ones(64, 1024)
    return {"a": one, "b": torch.full((64, 1024), 2.0), "c": one.clone()}


def make(folder: Path, case: str) -> tuple[Path, Path]:
    """A source with three tensors of 256 KiB, and the name of a target like it.

    In the torch files the third is the first again, so that a copy within the target is tried too.
    """
    name, _, target = case.partition(" -> ")
    path = folder / name
    if path.suffix == ".pt":
        state = tensors()
        torch.save({**state, "c": state["a"]}, path)
    elif path.suffix == ".npz":
        np.savez(path, **{key: value.numpy() for key, value in tensors().items()})
    elif path.suffix == ".safetensors":
        save_file(tensors(), path)
    else:
        path.mkdir()
        save_file(tensors(), path / "model.safetensors")
        (path / "config.json").write_text("{}")
    return path, folder / (target or f"out{path.suffix}")


def content(path: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    files = (file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def double(name, tensor):
    return 2 * tensor


def keep(name, tensor):
    return None


@contextlib.contextmanager
def largest_file(size: int):
    """The kernel itself refuses to let a file grow past `size`, in Python, C++ and zip alike."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize("old", [False, True], ids=["new", "replacing"])
@pytest.mark.parametrize("size", [0, 1000, 300_000, 500_000, 600_000])
@pytest.mark.parametrize("transform", [double, keep])
@pytest.mark.parametrize("case", SOURCES)
def test_write_that_fails_leaves_nothing(case, transform, size, old, tmp_path):
    """Catches a half-written file or temporary left behind, an old target lost, and an error of
    the operating system that reaches the user as something else or without the file's name."""
    source, target = make(tmp_path, case)
    if case == "in.pt" and size == 600_000:
        size = 520_000  # Two tensors and no third: torch stores what is tied once.
    if old:
        rewrite(source, target, double)
    before = content(tmp_path)
    with largest_file(size), pytest.raises(OSError, match=r"File too large") as caught:
        rewrite(source, target, transform, force=old)
    assert caught.value.errno == errno.EFBIG
    assert str(target) in str(caught.value)
    assert content(tmp_path) == before
    assert sorted(os.listdir(tmp_path)) == sorted([source.name, *([target.name] if old else [])])


@pytest.mark.parametrize("case", SOURCES)
def test_disk_full_when_flushed(case, tmp_path, monkeypatch):
    """Catches a rename before the data are known to be on the disk: fsync reports the full disk
    where the file system allocates late."""
    source, target = make(tmp_path, case)
    before = content(tmp_path)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        rewrite(source, target, double)
    assert str(target) in str(caught.value)
    assert content(tmp_path) == before


@pytest.fixture
def ctrl_c():
    """Let SIGINT raise, which a shell's background jobs ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("case", SOURCES)
def test_interrupt_cleans_up(case, tmp_path, ctrl_c):
    """Catches a cleanup that only knows ordinary errors."""
    source, target = make(tmp_path, case)
    before = content(tmp_path)

    def transform(name, tensor):
        if name == "b":
            signal.raise_signal(signal.SIGINT)
        return tensor

    with pytest.raises(KeyboardInterrupt):
        rewrite(source, target, transform)
    assert content(tmp_path) == before
    assert os.listdir(tmp_path) == [source.name]


@pytest.mark.parametrize("failing", [0, 1], ids=["aside", "in"])
def test_folder_swap_that_fails_restores_the_old_folder(failing, tmp_path, monkeypatch):
    """Catches an old folder left under its temporary name when the second rename fails."""
    source, target = make(tmp_path, "folder")
    rewrite(source, target, double)
    before = content(tmp_path)
    rename, calls = os.rename, []

    def broken(old, new):
        calls.append(new)
        if len(calls) == failing + 1:
            raise OSError(errno.EIO, "broken", str(new))
        rename(old, new)

    monkeypatch.setattr(atomic, "exchange", lambda one, other: False)
    monkeypatch.setattr(atomic.os, "rename", broken)
    with pytest.raises(OSError, match="broken"):
        rewrite(source, target, lambda name, tensor: 3 * tensor, force=True)
    assert content(tmp_path) == before


@pytest.mark.parametrize("case", SOURCES)
def test_never_overwrites_without_force(case, tmp_path):
    """Catches a target overwritten unasked, a refusal only after the work, and `force` ignored."""
    source, target = make(tmp_path, case)
    rewrite(source, target, lambda name, tensor: None)
    before = content(tmp_path)

    def never(name, tensor):
        raise AssertionError("the refusal comes first")

    with pytest.raises(FileExistsError, match=r"out.* exists already; force=True"):
        rewrite(source, target, never)
    assert content(tmp_path) == before
    rewrite(source, target, double, force=True)
    assert content(tmp_path) != before
    assert len(os.listdir(tmp_path)) == 2


def test_target_that_appears_meanwhile(tmp_path):
    """Catches a file of someone else, made during the work, that the last rename would hide."""
    source, target = make(tmp_path, "in.safetensors")

    def transform(name, tensor):
        target.write_text("another's")

    with pytest.raises(FileExistsError):
        rewrite(source, target, transform)
    assert target.read_text() == "another's"
    assert len(os.listdir(tmp_path)) == 2


@pytest.mark.parametrize("case", SOURCES[:4])
def test_onto_itself(case, tmp_path):
    """Catches a source truncated while it is read, and one that is its own target unasked."""
    source, target = make(tmp_path, case)
    rewrite(source, target, double)
    expected = content(target) if target.is_dir() else target.read_bytes()
    with pytest.raises(FileExistsError):
        rewrite(source, source, double)
    rewrite(source, source, double, force=True)
    result = content(source) if source.is_dir() else source.read_bytes()
    assert result == expected


def test_folder_of_files_that_is_no_checkpoint_is_never_replaced(tmp_path):
    """Catches `-o . --force` deleting whatever lies in the folder named."""
    source, _ = make(tmp_path, "folder")
    other = tmp_path / "precious"
    other.mkdir()
    rewrite(source, other, double, force=True)  # An empty folder may be filled.
    (other / "model.safetensors").unlink()
    with pytest.raises(FileExistsError, match="expected a checkpoint folder to replace"):
        rewrite(source, other, double, force=True)
    assert (other / "config.json").exists()


def test_folder_into_itself(tmp_path):
    """Catches an endless copy, and a source deleted because it lies in the target."""
    source, _ = make(tmp_path, "folder")
    with pytest.raises(ValueError, match="neither inside nor around"):
        rewrite(source, source / "out", double)
    (source / "inner").mkdir()
    save_file(tensors(), source / "inner" / "model.safetensors")
    with pytest.raises(ValueError, match="neither inside nor around"):
        rewrite(source / "inner", source, double, force=True)
    assert load_file(source / "inner" / "model.safetensors")["a"][0, 0] == 1


def test_file_and_folder_do_not_replace_each_other(tmp_path):
    """Catches a folder unlinked for a file or the reverse."""
    file, _ = make(tmp_path, "in.safetensors")
    folder, _ = make(tmp_path, "folder")
    with pytest.raises(IsADirectoryError, match="expected a file to write, found a folder"):
        rewrite(file, folder, double, force=True)
    with pytest.raises(NotADirectoryError, match="expected a folder to replace, found a file"):
        rewrite(folder, file, double, force=True)


@pytest.mark.parametrize(
    ("source", "target", "error", "message"),
    [
        ("none.safetensors", "out.safetensors", FileNotFoundError, "none.safetensors"),
        ("in.safetensors", "no/out.safetensors", FileNotFoundError, "expected its folder"),
        ("in.safetensors", "out.pt", ValueError, r"expected a .safetensors .* found '.pt'"),
        ("in.safetensors", "out", ValueError, r"or .safetensors file, found ''"),
        ("in.pt", "out.npz", ValueError, r"expected a .pt or .safetensors file, found '.npz'"),
        ("in.txt", "out.txt", ValueError, r"in.txt: expected a folder or a .*, found '.txt'"),
    ],
)
def test_bad_paths(source, target, error, message, tmp_path):
    """Catches a bad argument found only after a temporary was made, or never."""
    make(tmp_path, "in.safetensors")
    make(tmp_path, "in.pt")
    (tmp_path / "in.txt").touch()
    before = content(tmp_path)
    with pytest.raises(error, match=message):
        rewrite(tmp_path / source, tmp_path / target, double)
    assert content(tmp_path) == before


@pytest.mark.parametrize("path", ["\ud800.pt", "a\0b.pt"])
def test_path_that_the_system_cannot_name(path, tmp_path):
    """Catches a bare UnicodeEncodeError, or "embedded null byte", for a path."""
    source, _ = make(tmp_path, "in.pt")
    with pytest.raises(ValueError, match="target: expected a path that the system can name"):
        rewrite(source, path, double)
    with pytest.raises(ValueError, match="path: expected a path that the system can name"):
        open_checkpoint(path)
    with pytest.raises(TypeError, match="path: expected a path, got int"):
        open_checkpoint(3)


@pytest.mark.parametrize("case", SOURCES)
@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (lambda t: t[:1], ValueError, r"'b': .* shape \(64, 1024\) .* got \(1, 1024\)"),
        (lambda t: t.double(), ValueError, "'b': .* torch.float32, got .* torch.float64"),
        (lambda t: t.to_sparse(), ValueError, "'b': .* dense .* torch.sparse_coo"),
        (lambda t: 0, TypeError, "'b': expected a tensor or None, got int"),
    ],
    ids=["shape", "dtype", "layout", "kind"],
)
def test_bad_result_of_transform(case, result, error, message, tmp_path):
    """Catches a tensor stored under a header that does not describe it."""
    source, target = make(tmp_path, case)
    with pytest.raises(error, match=message):
        rewrite(source, target, lambda name, tensor: result(tensor) if name == "b" else tensor)
    assert os.listdir(tmp_path) == [source.name]


@pytest.mark.parametrize("case", ["in.safetensors", "folder"])
def test_permissions(case, tmp_path):
    """Catches private weights made public, a mask that is ignored, a target's own mode lost."""
    source, target = make(tmp_path, case)
    inner = "model.safetensors" if source.is_dir() else ""
    old = os.umask(0o027)
    try:
        for mode, expected in [(0o600, 0o600), (0o666, 0o640), (0o444, 0o440)]:
            (source / inner).chmod(mode)
            rewrite(source, target, double)
            assert stat.S_IMODE((target / inner).stat().st_mode) == expected
            if source.is_dir():
                target.chmod(0o700)
                rewrite(source, target, double, force=True)
                assert stat.S_IMODE(target.stat().st_mode) == 0o700
                (target / "config.json").unlink()
                (target / inner).unlink()
                target.rmdir()
            else:
                target.chmod(0o604)
                rewrite(source, target, double, force=True)
                assert stat.S_IMODE(target.stat().st_mode) == 0o604
                target.unlink()
    finally:
        os.umask(old)


@pytest.mark.parametrize("case", ["in.safetensors", "folder"])
def test_target_behind_a_link(case, tmp_path):
    """Catches a write through a link into a place that others share: the link is replaced."""
    source, target = make(tmp_path, case)
    shared = tmp_path / f"shared{source.suffix}"
    rewrite(source, shared, lambda name, tensor: None)
    target.symlink_to(shared, target_is_directory=shared.is_dir())
    with pytest.raises(FileExistsError):
        rewrite(source, target, double)
    rewrite(source, target, double, force=True)
    inner = "model.safetensors" if source.is_dir() else ""
    assert not target.is_symlink()
    assert load_file(target / inner)["a"][0, 0] == 2
    assert load_file(shared / inner)["a"][0, 0] == 1
    assert len(os.listdir(tmp_path)) == 3
