"""Run a task and write what it found."""

from collections.abc import Callable, Sequence
from pathlib import Path

from bench.paper.reporting.output import Result
from bench.paper.runs.jobs import Settings
from bench.paper.tasks import (
    efficientnet,
    failures,
    headtohead,
    iterative,
    learning,
    oneshot,
    rewinding,
)
from bench.paper.tasks.sweeps import depth, optimizer, recurrent, transformer, width

#: Each task by its name.
TASKS: dict[str, Callable[[Settings], Result]] = {
    "learning": learning.run,
    "oneshot": oneshot.run,
    "iterative": iterative.run,
    "depth": depth.run,
    "width": width.run,
    "optimizer": optimizer.run,
    "recurrent": recurrent.run,
    "transformer": transformer.run,
    "headtohead": headtohead.run,
    "rewinding": rewinding.run,
    "efficientnet": efficientnet.run,
    "failures": failures.run,
}


def reproduce(task: str, settings: Settings) -> tuple[Result, Sequence[Path]]:
    """The result, and the files written.

    Raises:
        ValueError, FileNotFoundError: name the argument or the file, and say what was expected.
    """
    if task not in TASKS:
        raise ValueError(f"task: expected one of {', '.join(TASKS)}; got {task!r}")
    result = TASKS[task](settings)
    return result, result.write()
