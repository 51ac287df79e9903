"""Whole or not at all: a file or a folder that appears under its name only once it is complete.

The new content is written beside the target under a hidden temporary name, flushed to the disk and
renamed. Whatever ends the writing early, a full disk, Ctrl-C and SIGTERM included, removes the
temporary and leaves an old target untouched.

    target    nothing there         a file              a folder
    rename    only if still free    over the old one    exchanged with the old one, which then goes

"Only if still free" and "exchanged" are one step where the system offers it (renameat2 on Linux).
Elsewhere a file is linked into its free place, and a folder is renamed aside, the new one in: what
is killed between the two leaves no target, and the next run on it renames the old one back.

A killed run cannot clean up; the next run on the same target does. A temporary's name tells whose
it is (a hash of the target's name), and a lock that ends with its process tells whether its run is
still alive.
"""

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from .formats.base import naming, open_regular
from .leftovers import PARTIAL, REPLACED, held, recover, remove, temporary
from .renaming import exchange, rename_to_free
from .termination import cleaning_up, shielded

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
    """Open a file to read and write that becomes `target` if the block ends well.

    It has the permissions of the target that it replaces, else those of `like`, or those of any
    new file, under the umask.

    Args:
        target: the path that the file gets.
        force: replace a file that is there; without it, one that appears meanwhile wins.
        like: gives the permissions of a new file.

    Raises:
        FileExistsError: for a target that exists, unless `force`.
        FileNotFoundError: for a target in a folder that does not exist.
    """
    recover(target)
    check_replaceable(target, force=force)
    path = temporary(target, PARTIAL)
    with cleaning_up(), ExitStack() as lock:
        try:
            allowed = ANY_FILE if like is None else permissions(like)
            with naming(target), new_file(path, allowed) as file:
                lock.enter_context(held(path))
                yield file
            put_file(path, target, force=force)
        finally:
            with shielded():
                remove(path)
    sync(target.parent)


@contextmanager
def replacing_folder(target: Path, *, like: Path, force: bool) -> Iterator[Path]:
    """Make an empty folder that becomes `target` if the block ends well.

    Args:
        target: the path that the folder gets.
        like: the folder whose permissions a new target gets.
        force: replace a folder that is there.

    Raises: as `replacing_file`.
    """
    recover(target)
    check_replaceable(target, force=force)
    path = temporary(target, PARTIAL)
    with cleaning_up(), ExitStack() as lock:
        try:
            new_folder(path, target if target.exists() else like)
            lock.enter_context(held(path))
            with naming(target):
                yield path
            put_folder(path, target, force=force)
        finally:
            with shielded():
                remove(path)


def put_file(path: Path, target: Path, *, force: bool) -> None:
    """Rename a file, which is on the disk, to its target; see `replacing_file`."""
    with shielded():
        if target.exists():
            os.chmod(path, permissions(target))
        if force:
            os.replace(path, target)
        else:
            _to_free(path, target)


def put_folder(path: Path, target: Path, *, force: bool) -> None:
    """Rename a folder to its target; an old one may be left under the name of the new."""
    sync(path)
    with shielded():
        if force and os.path.lexists(target):
            _replace_folder(path, target)
        else:
            _to_free(path, target)


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
        raise _exists(target)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target}: expected its folder {target.parent} to exist")


def permissions(path: Path) -> int:
    """The permission bits of a file or a folder."""
    return stat.S_IMODE(os.stat(path).st_mode) & PERMISSION_BITS


def _to_free(path: Path, target: Path) -> None:
    """Rename to a name that nobody has taken meanwhile."""
    try:
        rename_to_free(path, target)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise _exists(target) from None
        raise
    sync(target.parent)


def _replace_folder(path: Path, target: Path) -> None:
    """Put a folder in the place of another one, which is left under the temporary name."""
    if exchange(path, target):
        sync(target.parent)
        return
    aside = temporary(target, REPLACED)
    with ExitStack() as stack:
        if not target.is_symlink():
            stack.enter_context(held(target))
        try:
            os.rename(target, aside)
            os.rename(path, target)
        finally:
            if os.path.lexists(aside) and not os.path.lexists(target):
                os.rename(aside, target)
        sync(target.parent)
        remove(aside)


def _exists(target: Path) -> FileExistsError:
    return FileExistsError(f"{target} exists already; force=True (--force) would replace it")


def sync(path: Path) -> None:
    """See a file, or the names in a folder, to the disk, where the system lets one."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
