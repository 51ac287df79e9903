"""Kill calibrated prunings of a folder at random points, and see that each is finished by the next.

    python -m tests.support.streaming.kills FOLDER KILLS SEED

One process imports everything and forks a child a run, before any kernel has started threads. A
child is ended by SIGKILL, by SIGTERM, or by a disk that is full (a bound on the size of files);
signals come some time, as long as a step or less, after a step that is drawn has begun. Another
goes on from what it left. Printed is JSON: how many
runs were ended by what, and the most steps that one of them lost. It exits with an error where the
target is half-written, where its bytes are not those of a run that was never ended, or where more
than one step is done twice.
"""

import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import torch

import spectral_engine as se
import spectral_engine.streaming.folder
from spectral_engine.streaming.run import Streaming
from tests.support.streaming.block_models import (
    Decoder,
    batches,
    made,
    without_weights,
    write_folder,
)

BLOCKS = 4
WAYS = ("SIGKILL", "SIGTERM", "full")


def run(source: Path, target: Path, log: Path) -> None:
    """One run, which notes in `log` each step that it begins."""
    own = Streaming._step

    def noting(self, relay, survey, step, *others):
        with open(log, "a") as file:
            file.write(f"{step}\n")
        return own(self, relay, survey, step, *others)

    Streaming._step = noting  # type: ignore[method-assign]
    spectral_engine.streaming.folder.model_of_folder = lambda *_, **__: (
        without_weights(lambda: Decoder(BLOCKS)),
        "Decoder",
    )
    se.prune_file(source, target, "sparsegpt", 0.5, calibration=batches(6), progress=False)


def child(source: Path, target: Path, log: Path, most_bytes: int | None = None) -> int:
    """Start a run in a process of its own; its number."""
    number = os.fork()
    if number:
        return number
    status = 1
    try:
        torch.set_num_threads(1)
        if most_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
        run(source, target, log)
        status = 0
    except OSError:
        status = 2
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
    source = write_folder(made(lambda: Decoder(BLOCKS)), folder / "in")
    draw = random.Random(seed)
    reference, log = folder / "reference", folder / "log"
    assert ended(child(source, reference, log), log) == 0
    wanted, count = content(reference), len(begun_in(log))
    start = time.monotonic()
    shutil.rmtree(reference)
    assert ended(child(source, reference, log), log) == 0
    whole = time.monotonic() - start
    largest = max(len(value) for value in wanted.values())
    seen: Counter[str] = Counter()
    most_lost = finished = 0
    while sum(seen[way] for way in WAYS) < kills:
        target, log = folder / "out", folder / "out.log"
        log.unlink(missing_ok=True)
        ends = 0
        while not target.exists():
            way = draw.choice(WAYS)
            may = ends < 3  # or a run is left alone, so that all of them end
            full = draw.randrange(1, largest) if way == "full" and may else None
            steps = draw.randint(0, count) if way != "full" and may else 10**9
            number = child(source, target, log, full)
            by = getattr(signal, way, signal.SIGKILL)
            status = ended(number, log, steps, draw.uniform(0, whole / count), by)
            if status:
                ends += 1
                seen[way] += 1
            assert ends < 5, f"a run that nothing ends fails: {status}"
            assert not target.exists() or content(target) == wanted, "half-written"
        assert content(target) == wanted, "other bytes"
        assert not [path for path in folder.iterdir() if path.name.startswith(".")], "left behind"
        most_lost = max(most_lost, lost(log) / max(1, ends))
        assert lost(log) <= ends, f"{lost(log)} steps done again after {ends} ends"
        shutil.rmtree(target)
        finished += 1
    return {"ended": dict(seen), "finished": finished, "steps lost an end": most_lost,
            "seconds of a run": round(whole, 3)}  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
