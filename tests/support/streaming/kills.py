"""Kill prunings of a folder at random points, and see that each is finished by the next.

    python -m tests.support.streaming.kills FOLDER KILLS SEED

In turn they are calibrated, of weights alone, and of weights alone with the result compressed.
One process imports everything and forks a child a run, before any kernel has started threads. A
child is ended by SIGKILL, by SIGTERM, or by a disk that is full (a bound on the size of files);
signals come some time, as long as a step or less, after a step that is drawn has begun. Another
goes on from what it left. Printed is JSON: how many
runs were ended by what, and the most steps that one of them lost. It exits with an error where the
target is half-written, where its bytes are not those of a run that was never ended, or where more
than one step is done twice: a block, or without calibration a tensor.
"""

import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

import spectral_engine as se
import spectral_engine.pruning.file
import spectral_engine.streaming.folder
from spectral_engine.checkpoints import draft
from spectral_engine.compression.file import compress_file
from spectral_engine.streaming.api import prune_into
from spectral_engine.streaming.run import Streaming
from tests.support.streaming.block_models import (
    Decoder,
    batches,
    made,
    without_weights,
    write_folder,
)

BLOCKS = 4
KINDS = ("calibrated", "weights", "compressed")
WAYS = ("SIGKILL", "SIGTERM", "full")


def run(kind: str, source: Path, target: Path, log: Path) -> None:
    """One run, which notes in `log` each step that it begins."""

    def note(step: object) -> None:
        with open(log, "a") as file:
            file.write(f"{step}\n")

    if kind == "calibrated":
        own_step = Streaming._step

        def step(self, relay, survey, number, *others):
            note(number)
            return own_step(self, relay, survey, number, *others)

        Streaming._step = step  # type: ignore[method-assign]
        spectral_engine.streaming.folder.model_of_folder = lambda *_, **__: (
            without_weights(lambda: Decoder(BLOCKS)),
            "Decoder",
        )
        se.prune_file(source, target, "sparsegpt", 0.5, calibration=batches(6), progress=False)
        return
    own_prune = spectral_engine.pruning.file._prune_in

    def prune(plan, layer, *others):
        note(layer.name)
        return own_prune(plan, layer, *others)

    spectral_engine.pruning.file._prune_in = prune
    draft.NOTE_BYTES = 1  # as of tensors that are large
    finish = partial(compress_file, target=target, progress=False)
    prune_into(
        source, target, "principal", 0.9, progress=False,
        finish=finish if kind == "compressed" else None,
    )  # fmt: skip


def child(kind: str, source: Path, target: Path, log: Path, most_bytes: int | None = None) -> int:
    """Start a run in a process of its own; its number."""
    number = os.fork()
    if number:
        return number
    status = 1
    try:
        torch.set_num_threads(1)
        if most_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
        run(kind, source, target, log)
        status = 0
    except OSError:
        status = 2
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(status)


def ended(number: int, log: Path, steps: int = 10**9, after: float = 0.0, by: int = 0) -> int:
    """The status of a run, 0 where it has come to its end by itself.

    Ended by a signal, some time after it has begun with so many steps.
    """
    begun = len(begun_in(log))
    stop = None
    while True:
        found, status = os.waitpid(number, os.WNOHANG)
        if found:
            return status
        if stop is None and len(begun_in(log)) - begun >= steps:
            stop = time.monotonic() + after
        if stop is not None and time.monotonic() >= stop:
            os.kill(number, by)
            stop = float("inf")
        time.sleep(0.001)


def begun_in(log: Path) -> list[str]:
    """The steps that runs have begun, in order."""
    return log.read_text().split() if log.exists() else []


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def lost(log: Path) -> int:
    """How many steps were begun more than once, however often each."""
    steps = begun_in(log)
    return len(steps) - len(set(steps))


def main(folder: Path, kills: int, seed: int) -> dict:
    """Kill so many runs; what was seen."""
    draw, most_lost, finished = random.Random(seed), 0.0, 0
    seen: Counter[str] = Counter()
    source = write_folder(made(lambda: Decoder(BLOCKS)), folder / "in")
    kinds = {kind: reference(kind, source, folder) for kind in KINDS}
    while sum(seen.values()) < kills:
        kind = KINDS[finished % len(KINDS)]
        target, log = folder / "out", folder / "out.log"
        log.unlink(missing_ok=True)
        ways = finished_run(kind, source, target, log, kinds[kind], draw)
        assert not [path for path in folder.iterdir() if path.name.startswith(".")], "left behind"
        most_lost = max(most_lost, lost(log) / max(1, len(ways)))
        assert lost(log) <= len(ways), f"{lost(log)} steps done again after {ways}"
        shutil.rmtree(target)
        seen.update(f"{kind} {way}" for way in ways)
        finished += 1
        print(f"{sum(seen.values())} of {kills}", file=sys.stderr, flush=True)
    return {"ended": dict(sorted(seen.items())), "sum": sum(seen.values()), "finished": finished,
            "steps lost an end": most_lost}  # fmt: skip


@dataclass(frozen=True)
class Reference:
    """A run that nothing ends: its bytes, its steps, its seconds."""

    content: dict[str, bytes]
    steps: int
    seconds: float


def reference(kind: str, source: Path, folder: Path) -> Reference:
    """A run of a kind, the second of two."""
    target, log = folder / "reference", folder / f"log-{kind}"
    for _ in range(2):
        shutil.rmtree(target, ignore_errors=True)
        log.unlink(missing_ok=True)
        start = time.monotonic()
        assert ended(child(kind, source, target, log), log) == 0
    found = Reference(content(target), len(begun_in(log)), time.monotonic() - start)
    shutil.rmtree(target)
    return found


def finished_run(
    kind: str, source: Path, target: Path, log: Path, wanted: Reference, draw: random.Random
) -> list[str]:
    """Runs on one target that are ended, until one is not; what they were ended by."""
    ways: list[str] = []
    largest = max(len(value) for value in wanted.content.values())
    while not target.exists():
        way = draw.choice(WAYS)
        may = len(ways) < 3  # or a run is left alone, so that all of them end
        full = draw.randrange(1, largest) if way == "full" and may else None
        steps = draw.randint(0, wanted.steps) if way != "full" and may else 10**9
        number = child(kind, source, target, log, full)
        by = getattr(signal, way, signal.SIGKILL)
        status = ended(number, log, steps, draw.uniform(0, wanted.seconds / wanted.steps), by)
        ways += [way] if status else []
        assert len(ways) < 5, f"a run that nothing ends fails: {status}"
        assert not target.exists() or content(target) == wanted.content, "half-written"
    assert content(target) == wanted.content, "other bytes"
    return ways


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
