"""The one place that says how functions are compiled by Numba, and where the result is kept.

Machine code is kept in the first of these that can be written: the folder that NUMBA_CACHE_DIR
names, the package's own `__pycache__`, the user's cache folder. Where none can, or what lies there
is damaged, or the disk is full, the functions are compiled again: a cache never makes a call fail.
What was compiled from another state of `reference` or of the function's folder is not used.

Threads do not survive a fork: OpenMP's are gone in the child, and a parallel kernel would wait for
them for ever. So in a child of `os.fork`, such as a worker of torch's DataLoader, the parallel
kernels run on one thread, from the same source and with the same bits. They are then compiled
once more, and kept apart in the cache. A child that imports this only after it was forked cannot
know what its parent has run, and is taken for one whose threads are gone; torch's own operations
on large tensors do wait for ever there.
"""

import hashlib
import logging
import multiprocessing
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit
from numba.core.caching import CompileResultCacheImpl, FunctionCache, IndexDataCacheFile

_LOG = logging.getLogger("spectral_kernels")
_OPTIONS = {"error_model": "numpy"}
#: PF_FORKNOEXEC of Linux's flags of a process, in the ninth field of /proc/self/stat.
_FORKED_NOT_EXECUTED = 0x40


class _State:
    """What has been said once, and whether this process is a fork's child."""

    forked = False
    compiles = False
    uncached = False


def _in_child() -> None:
    _State.forked = True


def _forked_before() -> bool:
    """Whether this process is a fork's child, and has not become another program since.

    Only Linux tells. The children of multiprocessing's fork server come from a fresh process.
    """
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    served = (
        multiprocessing.parent_process() is not None
        and multiprocessing.get_start_method(allow_none=True) == "forkserver"
    )
    return bool(int(fields[6]) & _FORKED_NOT_EXECUTED) and not served


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
    _State.forked = _forked_before()


def on_one_thread() -> bool:
    """Whether this process was forked: it may have no threads to use."""
    return _State.forked


def compiled(function: Any = None, *, parallel: bool = False, inline: str = "never") -> Any:
    """Numba's `njit` with the options that all kernels share; a decorator, with or without ().

    Args:
        function: what to compile when it is first called.
        parallel: whether its `prange` loops are shared by threads.
        inline: as `njit` takes it.

    Returns:
        The compiled function.
    """
    if function is None:
        return lambda f: compiled(f, parallel=parallel, inline=inline)
    if parallel:
        return _Parallel(function)
    return _kept(njit(inline=inline, **_OPTIONS)(function), _Cache)


class _Parallel:
    """A kernel with `prange` loops; on one thread in a fork's child."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.py_func = function
        self.__doc__, self.__name__ = function.__doc__, function.__name__
        self._threaded = _kept(njit(parallel=True, **_OPTIONS)(function), _Cache)
        self._serial: Any = None

    def __call__(self, *arguments: Any) -> Any:
        if not _State.forked:
            return self._threaded(*arguments)
        if self._serial is None:
            # Without `parallel`, prange is range.
            self._serial = _kept(njit(**_OPTIONS)(self.py_func), _SerialCache)
        return self._serial(*arguments)


@cache
def _sources(folder: Path) -> str:
    """A hash of the Python files in a folder."""
    found = hashlib.sha256()
    for file in sorted(folder.glob("*.py")):
        found.update(file.read_bytes())
    return found.hexdigest()


def _own_sources(folder: Path) -> str:
    """Those of a function's folder; where it lies in a folder of kernels, these are compiled in."""
    own = _sources(folder)
    return own + _sources(folder.parent) if folder.parent.name == "cpu" else own


class _Cache(FunctionCache):  # type: ignore[misc]
    """Numba's cache of a function, without its errors: it then compiles, and keeps nothing."""

    def __init__(self, py_func: Any) -> None:
        super().__init__(py_func)
        # Numba looks at the function's own file; what it calls is compiled into it as well.
        folder = Path(py_func.__code__.co_filename).parent
        self._cache_file = IndexDataCacheFile(
            cache_path=self._cache_path,
            filename_base=self._impl.filename_base,
            source_stamp=(_own_sources(folder), _sources(Path(__file__).parent / "reference")),
        )

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            found = super().load_overload(sig, target_context)
        except Exception as error:  # a damaged file raises what it likes
            _LOG.info("%s: compiled again, since what was kept is damaged: %r", self._name, error)
            found = None
        if found is None and not _State.compiles:
            _State.compiles = True
            _LOG.info("compiling kernels for this processor; the first calls take some 20 s")
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except Exception:
            try:
                self.flush()  # puts an empty index in the place of a damaged one
                super().save_overload(sig, data)
            except Exception as error:
                self.disable()
                _say_uncached(error)


class _SerialCacheImpl(CompileResultCacheImpl):  # type: ignore[misc]
    """Under a name of its own: Numba's key does not tell `parallel`."""

    def get_filename_base(self, fullname: str, abiflags: str) -> str:
        return f"serial-{super().get_filename_base(fullname, abiflags)}"


class _SerialCache(_Cache):
    _impl_class = _SerialCacheImpl


def _kept(dispatcher: Any, kind: type[_Cache]) -> Any:
    """The function, with its machine code kept on disk where there is a place for it."""
    try:
        dispatcher._cache = kind(dispatcher.py_func)
    except (RuntimeError, OSError) as error:  # no folder can be written
        _say_uncached(error)
    return dispatcher


def _say_uncached(error: Exception) -> None:
    if not _State.uncached:
        _State.uncached = True
        _LOG.warning(
            "kernels are compiled anew in each process, which takes some 20 s: %s; "
            "set NUMBA_CACHE_DIR to a folder that can be written",
            error,
        )
