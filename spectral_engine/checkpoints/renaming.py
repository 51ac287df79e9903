"""Renames in one step: two names exchanged, and a name taken only if it is free.

Linux has both in renameat2, which Python does not offer. A file system may lack them (EINVAL), and
other systems have no such call; what is then done instead is said at each function.

Source: the Linux manual, rename(2).
"""

import ctypes
import errno
import os
from pathlib import Path

_AT_FDCWD = -100
_NOREPLACE = 1
_EXCHANGE = 2
#: What the call says where the kernel, the file system or a sandbox does not offer it.
_LACKING = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False, with nothing done, where the system cannot."""
    return _rename(one, other, _EXCHANGE)


def rename_to_free(source: Path, target: Path) -> None:
    """Rename a file or a folder to a name that is free.

    Where the system cannot tell in one step, a file is linked and then unlinked, and a folder is
    renamed, which fails on all that is there but an empty folder.

    Raises:
        OSError: EEXIST or ENOTEMPTY for a name that is taken.
    """
    if _rename(source, target, _NOREPLACE):
        return
    if source.is_dir():
        os.rename(source, target)
        return
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # A file system without links: look, then rename.
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        os.rename(source, target)
    else:
        os.unlink(source)


def _rename(source: Path, target: Path, flag: int) -> bool:
    """Rename by renameat2; False where the system lacks the call or the flag."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    paths = os.fsencode(source), os.fsencode(target)
    if call(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], ctypes.c_uint(flag)) == 0:
        return True
    code = ctypes.get_errno()
    if code in _LACKING:
        return False
    raise OSError(code, os.strerror(code), str(source), None, str(target))
