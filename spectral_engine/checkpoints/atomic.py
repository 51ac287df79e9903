"""Whole or not at all: a file or a folder that appears under its name only once it is complete.

The new content is written beside the target under a hidden temporary name, flushed to the disk and
renamed. Whatever ends the writing early, a full disk and Ctrl-C included, removes the temporary and
leaves an old target untouched. A folder cannot be renamed over another one: the old folder is
renamed aside, the new one in, and only then is the old one removed.
"""

import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .base import naming, open_regular

PERMISSION_BITS = 0o777
OWNER_ALL = 0o700
ANY_FILE = 0o666


@contextmanager
def new_file(path: Path, permissions: int) -> Iterator[BinaryIO]:
    """A file that must not exist yet, open to read and write; on the disk when the block ends."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags, permissions), "w+b") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing_file(target: Path, *, force: bool, like: Path | None = None) -> Iterator[BinaryIO]:
    """A file open to read and write that becomes `target` if the block ends well.

    It has the permissions of the target that it replaces, else those of `like`, or those of any
    new file, under the umask.
    """
    check_replaceable(target, force=force)
    temporary = _temporary(target)
    try:
        allowed = ANY_FILE if like is None else permissions(like)
        with naming(target), new_file(temporary, allowed) as file:
            yield file
        if target.exists():
            os.chmod(temporary, permissions(target))
        check_replaceable(target, force=force)
        os.replace(temporary, target)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
    _sync_folder(target.parent)


@contextmanager
def replacing_folder(target: Path, *, like: Path, force: bool) -> Iterator[Path]:
    """An empty folder that becomes `target` if the block ends well; permissions as for a file."""
    check_replaceable(target, force=force)
    temporary = _temporary(target)
    try:
        new_folder(temporary, target if target.exists() else like)
        with naming(target):
            yield temporary
        _sync_folder(temporary)
        check_replaceable(target, force=force)
        _rename_over(temporary, target)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)


def new_folder(path: Path, like: Path) -> None:
    """Make a folder with the permissions of `like`, and with all of them for its owner."""
    os.mkdir(path, permissions(like) | OWNER_ALL)


def copy_file(source: Path, target: Path) -> None:
    """Copy content and permissions to a new file, and see it to the disk."""
    with open_regular(source) as reader, new_file(target, permissions(source)) as writer:
        shutil.copyfileobj(reader, writer)


def check_replaceable(target: Path, *, force: bool) -> None:
    """FileExistsError for a target that exists, unless `force`."""
    if not force and os.path.lexists(target):
        raise FileExistsError(f"{target} exists already; force=True (--force) would replace it")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target}: expected its folder {target.parent} to exist")


def _rename_over(temporary: Path, target: Path) -> None:
    if not os.path.lexists(target):
        os.rename(temporary, target)
        _sync_folder(target.parent)
        return
    aside = _temporary(target)
    try:
        os.rename(target, aside)
        os.rename(temporary, target)
    finally:
        if os.path.lexists(aside) and not os.path.lexists(target):
            os.rename(aside, target)
    _sync_folder(target.parent)
    if aside.is_symlink():
        os.unlink(aside)
    else:
        shutil.rmtree(aside)


def _temporary(target: Path) -> Path:
    return target.parent / f".{secrets.token_hex(8)}.partial"


def permissions(path: Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode) & PERMISSION_BITS


def _sync_folder(path: Path) -> None:
    """Make renames in a folder durable, where the system lets a folder be opened."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
