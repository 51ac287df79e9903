"""What killed runs leave beside a target: found, removed, or put back, by the next run on it.

    .HASH.TOKEN.partial     new content on its way, or an old folder on its way out
    .HASH.TOKEN.replaced    an old folder that was renamed aside, where names cannot be exchanged
    .HASH.unfinished        what a long run has done so far, from which another one goes on; stays

HASH comes from the name of the target, TOKEN is random. A run holds a lock on its temporary; the
lock ends with the process, so that one that can be had belongs to no one. Where there are no locks
(Windows, some network file systems) temporaries of a day ago are taken to be dead.
"""

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PARTIAL = "partial"
REPLACED = "replaced"
UNFINISHED = "unfinished"
DEAD_AFTER_SECONDS = 86_400
#: A temporary is empty for a moment between being made and being locked.
NEW_SECONDS = 1.0
_NAME = re.compile(r"\.[0-9a-f]{16}\.([0-9a-f]{16}\.(partial|replaced)|unfinished)")


def temporary(target: Path, kind: str) -> Path:
    """A new name beside the target that tells whose temporary it is."""
    return target.parent / f".{_hash(target)}.{secrets.token_hex(8)}.{kind}"


def unfinished(target: Path) -> Path:
    """The name beside the target under which a long run keeps what it has done."""
    return target.parent / f".{_hash(target)}.{UNFINISHED}"


def is_leftover(name: str) -> bool:
    """Whether a file or a folder of this name is the temporary of some target beside it."""
    return _NAME.fullmatch(name) is not None


def is_litter(name: str) -> bool:
    """Whether nothing goes on from a temporary of this name once its run has ended."""
    return is_leftover(name) and not name.endswith(UNFINISHED)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock that tells other runs that a temporary is in use."""
    descriptor = _locked(path)
    try:
        yield
    finally:
        if descriptor is not None and descriptor >= 0:
            os.close(descriptor)


@contextmanager
def held_alone(path: Path) -> Iterator[bool]:
    """Hold the lock of a file or a folder that stays; gives whether no other run holds it.

    Where there are no locks, nobody is known to hold one.
    """
    if fcntl is None:
        yield True
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        alone = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            alone = error.errno not in (errno.EAGAIN, errno.EACCES)
        yield alone
    finally:
        os.close(descriptor)


def recover(target: Path) -> None:
    """Clean up after killed runs on a target: put an old folder back, remove what is left.

    An old folder that was renamed aside is the target if there is no other; all else is removed.
    Temporaries of runs that are alive stay.
    """
    prefix = f".{_hash(target)}."
    try:
        with os.scandir(target.parent) as entries:
            names = [e.name for e in entries if e.name.startswith(prefix) and is_litter(e.name)]
    except OSError:
        return  # A folder that is not there, or not readable, is spoken of by who needs it.
    for path in (target.parent / name for name in sorted(names, key=_replaced_first)):
        descriptor = None if _is_new(path) else _locked(path)
        if descriptor is None:
            continue  # In use.
        try:
            with suppress(OSError):  # Left as it is: another user's, or on its way out already.
                if path.name.endswith(REPLACED) and not os.path.lexists(target):
                    os.rename(path, target)
                else:
                    remove(path)
        finally:
            if descriptor >= 0:
                os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        with suppress(FileNotFoundError):  # Another run cleans up at the same time.
            shutil.rmtree(path)
    else:
        with suppress(FileNotFoundError):
            os.unlink(path)


def _is_new(path: Path) -> bool:
    """Whether a temporary may have been made, and not yet been locked, a moment ago."""
    try:
        found = os.lstat(path)
        empty = not os.listdir(path) if stat.S_ISDIR(found.st_mode) else found.st_size == 0
    except OSError:
        return False
    return empty and time.time() - found.st_mtime < NEW_SECONDS


def _replaced_first(name: str) -> bool:
    return not name.endswith(REPLACED)


def _hash(target: Path) -> str:
    return hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]


def _locked(path: Path) -> int | None:
    """A descriptor that holds a lock; -1 where a lock is not needed; None for one in use.

    The name must still be that of the locked file: whoever had it may just have renamed it.
    """
    if fcntl is None or path.is_symlink():
        return _by_age(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        there, here = os.stat(path), os.fstat(descriptor)
        if (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino):
            return descriptor
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES, errno.ENOENT):
            os.close(descriptor)
            return _by_age(path)
    os.close(descriptor)
    return None


def _by_age(path: Path) -> int | None:
    """Without a lock: dead, that is -1, if nobody has written to it for long."""
    try:
        age = time.time() - os.lstat(path).st_mtime
    except OSError:
        return None
    return -1 if age > DEAD_AFTER_SECONDS else None
