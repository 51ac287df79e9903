"""The tasks, one a file; each has `run(settings) -> Result`."""

from collections.abc import Callable

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
