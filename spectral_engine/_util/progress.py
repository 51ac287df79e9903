"""`progress=True | False | a callable`: one meaning in every function that takes long.

True is a bar on stderr where that is a terminal, and nothing elsewhere; False is nothing; a
callable is called with each row as it is done.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from spectral_engine._util.text import plain_text

Row = TypeVar("Row")

#: What an argument `progress` may be; of `Progress[LayerReport]`, the callable takes that row.
Progress = bool | Callable[[Row], object]


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
    if callable(progress):
        call, lock = progress, Lock()

        def pass_on(row: Row) -> None:
            with lock:
                call(row)

        yield pass_on
    elif progress and sys.stderr.isatty():
        with _bar(Console(stderr=True)) as bar:
            task = bar.add_task(plain_text(work).plain, total=total, row="")

            def advance(row: Row) -> None:
                name = str(getattr(row, "name", ""))
                bar.update(task, advance=1, row=plain_text(name).plain)

            yield advance
    else:
        yield lambda row: None


def _bar(console: Console) -> Bar:
    return Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[row]}", markup=False),
        console=console,
        transient=True,
    )
