"""Run a task and write what it found."""

from collections.abc import Sequence
from pathlib import Path

from bench.paper.reporting.output import Result
from bench.paper.runs.jobs import Settings
from bench.paper.tasks import TASKS


def reproduce(task: str, settings: Settings) -> tuple[Result, Sequence[Path]]:
    """The result, and the files written.

    Raises:
        ValueError, FileNotFoundError: name the argument or the file, and say what was expected.
    """
    if task not in TASKS:
        raise ValueError(f"task: expected one of {', '.join(TASKS)}; got {task!r}")
    result = TASKS[task](settings)
    return result, result.write()
