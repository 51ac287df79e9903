"""SIGTERM and SIGHUP that clean up: they end the process as before, once its litter is gone."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


class _Ended(BaseException):
    """Raised where the signal arrives, so that every `finally` on the way out is run."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Shield:
    """How many blocks hold signals back, and the signal that has come meanwhile."""

    depth = 0
    pending: int | None = None


@contextmanager
def shielded() -> Iterator[None]:
    """Hold back the signals of `cleaning_up` while a short block renames and removes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _Shield.depth += 1
    try:
        yield
    finally:
        _Shield.depth -= 1
        number = _Shield.pending
        if number is not None and _Shield.depth == 0:
            _Shield.pending = None
            raise _Ended(number)


@contextmanager
def cleaning_up() -> Iterator[None]:
    """Let a signal that would end the process at once end it after the block's own cleanup.

    Only in the main thread, where Python handles signals, and only signals that still have the
    system's own effect: a handler that the program has set stays. The process ends by the signal
    itself, so that whoever sent it sees so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    changed = [number for number in _SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    for number in changed:
        signal.signal(number, _raise)
    try:
        yield
    except _Ended as ended:
        if not changed:
            raise  # The block around this one, which has set the handlers, ends the process.
        signal.signal(ended.number, signal.SIG_DFL)
        os.kill(os.getpid(), ended.number)
        raise
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


def _raise(number: int, frame: FrameType | None) -> None:
    if _Shield.depth:
        _Shield.pending = number
        return
    raise _Ended(number)
