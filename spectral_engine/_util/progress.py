"""`progress=True | False | a callable`: one meaning in every function that takes long.

True is a bar on a terminal or in a notebook, and nothing elsewhere; False is nothing; a callable is
called with each row as it is done. Whatever it is, the logger "spectral_engine" is told of each row
(DEBUG) and of the whole (INFO); it says nothing until a program sets logging up.
"""

import importlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.text import Text

from spectral_engine._util.text import printable

Row = TypeVar("Row")

#: What an argument `progress` may be; of `Progress[LayerReport]`, the callable takes that row.
Progress = bool | Callable[[Row], object]
#: A bar is told of a row, or of a step on the way to the next one.
Show = Callable[[str, int], None]
LOGGER = logging.getLogger("spectral_engine")
LOGGER.addHandler(logging.NullHandler())
#: Seconds between two pictures of a bar in a notebook.
_NOTEBOOK_SECONDS = 0.2
#: What is told of the steps on the way to a row, where somebody is.
_on_the_way: ContextVar[Callable[[str], None] | None] = ContextVar("on_the_way", default=None)


def check_progress(progress: Any) -> None:
    """Refuse what `reporting` would refuse, before any work.

    Raises:
        TypeError: `progress` is neither True, False nor a callable.
    """
    if not isinstance(progress, bool | np.bool_) and not callable(progress):
        raise TypeError(
            "progress: expected True (a bar on a terminal), False (none) or a function of each "
            f"row; got {progress!r}"
        )


@contextmanager
def reporting(
    progress: Progress[Row], work: str, total: int | None = None
) -> Iterator[Callable[[Row], None]]:
    """Report rows while the block runs.

        with reporting(progress, "pruning", len(layers)) as report:
            for layer in layers:
                report(prune_one(layer))

    Args:
        progress: see the head of this module.
        work: what is done, shown before the bar.
        total: how many rows will come; None where that is not known.

    Returns:
        A function to call with each row once it is done, from any thread; the callable is never
        called by two threads at once.

    Raises:
        TypeError: `progress` is neither True, False nor a callable.
    """
    check_progress(progress)
    start, lock, done = time.perf_counter(), Lock(), 0
    with _bar(work, total, wanted=not callable(progress) and bool(progress)) as show:

        def report(row: Row) -> None:
            nonlocal done
            name = printable(row if isinstance(row, str) else str(getattr(row, "name", row)))
            with lock:
                done += 1
                show(name, 1)
                LOGGER.debug("%s: %s", work, name)
                if callable(progress):
                    progress(row)

        earlier = _on_the_way.set(lambda step: show(step, 0))
        try:
            yield report
        finally:
            _on_the_way.reset(earlier)
    LOGGER.info("%s: %d in %.2f s", work, done, time.perf_counter() - start)


def on_the_way(step: str) -> None:
    """Tell who shows the progress what is done before the next row is: "batch 3"."""
    told = _on_the_way.get()
    if told is not None:
        told(step)


@contextmanager
def told_of_steps(tell: Callable[[str], None]) -> Iterator[None]:
    """Be told what `on_the_way` is told while the block runs."""
    earlier = _on_the_way.set(tell)
    try:
        yield
    finally:
        _on_the_way.reset(earlier)


@contextmanager
def _bar(work: str, total: int | None, *, wanted: bool) -> Iterator[Show]:
    """Show rows on a bar, where one is wanted and somebody sees it."""
    console = Console(stderr=True)
    if wanted and console.is_jupyter and "IPython" in sys.modules:
        yield _in_notebook(work, total)
    elif wanted and sys.stderr is not None and sys.stderr.isatty():
        with _on_terminal(console) as bar:
            task = bar.add_task(printable(work), total=total, row="")
            yield lambda name, more: bar.update(task, advance=more, row=name)
    else:
        yield lambda name, more: None


def _on_terminal(console: Console) -> Bar:
    return Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        _Memory(),
        TextColumn("{task.fields[row]}", markup=False),
        console=console,
        transient=True,
    )


class _Memory(ProgressColumn):
    """The memory that the process holds now."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        held = memory_held()
        return Text("" if held is None else f"{held / 2**30:.1f} GiB", style="dim")


def memory_held() -> int | None:
    """Bytes of memory that the process holds now; None where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _in_notebook(work: str, total: int | None) -> Show:
    """A bar in the cell, as one line of text that is written over; rich's own needs ipywidgets."""
    library: Any = importlib.import_module("IPython.display")
    place = library.display({"text/plain": work}, raw=True, display_id=True)
    start, done, last = time.monotonic(), 0, 0.0

    def show(name: str, more: int) -> None:
        nonlocal done, last
        done += more
        now = time.monotonic()
        if done != total and now - last < _NOTEBOOK_SECONDS:
            return
        last = now
        left = ""
        if total and 0 < done < total:
            left = f", {(now - start) * (total - done) / done:.0f} s left"
        full = round(20 * done / total) if total else 0
        held = memory_held()
        memory = "" if held is None else f", {held / 2**30:.1f} GiB"
        said = (
            f"{work} [{'#' * full}{'.' * (20 - full)}] {done}/{total or '?'}{left}{memory} {name}"
        )
        place.update({"text/plain": said}, raw=True)

    return show
