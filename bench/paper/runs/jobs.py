"""One run of a task: its settings, its pieces of work side by side, and where their results stay.

A piece of work is a function of this package with plain arguments. Its result is kept in the cache
under a name made of all that it depends on, so that a run which was stopped goes on, and a finished
one costs nothing. On the CPU each piece has one thread, whatever the number of workers.
"""

import hashlib
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch

import spectral_engine as se
from bench.paper.training.data import Data, load
from bench.paper.training.loop import Recipe, shortened
from bench.paper.training.networks import NETWORKS, Network
from bench.paper.training.store import remembered
from spectral_engine._util.threads import one_thread
from spectral_engine.demo.data import DEFAULT_FOLDER

#: Part of every name in the cache, so that results of an older version of this code are not used.
VERSION = 2
ROOT = Path(__file__).parents[3]
#: The environment of a new process. Each library has one thread. glibc keeps memory that is freed:
#: activations come and go by megabytes, and a seventh of a training step of LeNet-5 was spent on
#: getting the same pages from the system again.
_ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 33),
}


@dataclass(frozen=True)
class Settings:
    """What a run is made with.

    seeds, epochs: None for the network's own. width: of the layers, relative to the original's.
    subset: of the training images. quick: few settings, one epoch, to see that all works.
    """

    network: str
    data: Path = DEFAULT_FOLDER
    out: Path = ROOT / "bench" / "results" / "paper"
    cache: Path = ROOT / ".benchmarks" / "paper"
    seeds: int | None = None
    epochs: int | None = None
    width: float = 1.0
    subset: int | None = None
    quick: bool = False
    device: str = "cpu"
    workers: int = 1

    def __post_init__(self) -> None:
        if self.network not in NETWORKS:
            raise ValueError(f"network: expected one of {', '.join(NETWORKS)}; got {self.network}")
        for name in ("seeds", "epochs", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected 1 or more; got {value}")
        if not 0.0 < self.width <= 4.0:
            raise ValueError(f"width: expected a factor in (0, 4]; got {self.width}")

    @property
    def chosen(self) -> Network:
        """The network."""
        return NETWORKS[self.network]

    @property
    def recipe(self) -> Recipe:
        """How it is trained."""
        return shortened(self.chosen.recipe, 1 if self.quick else self.epochs)

    @property
    def runs(self) -> range:
        """The seeds."""
        return range(self.seeds or (2 if self.quick else self.chosen.seeds))

    @property
    def label(self) -> str:
        """The network, and what differs from the original, as it stands beside every number."""
        parts = [self.network]
        if self.chosen.about:
            parts.append(self.chosen.about)
        if self.width != 1.0:
            parts.append(f"width {self.width:g}")
        parts.append(f"{self.subset:,} training images" if self.subset else "all training images")
        return ", ".join(parts)

    @property
    def stem(self) -> str:
        """For the names of result files."""
        return f"{self.network}{self.smaller}"

    @property
    def smaller(self) -> str:
        """What differs from a full run, for the names of result files."""
        width = "" if self.width == 1.0 else f"-width{self.width:g}"
        subset = f"-subset{self.subset}" if self.subset else ""
        return f"{width}{subset}{'-quick' if self.quick else ''}"

    def require_own_networks(self, task: str) -> None:
        """Raise ValueError if a network was chosen for a task that has networks of its own."""
        for name, usual in (("network", "lenet-300-100"), ("width", 1.0)):
            if getattr(self, name) != usual:
                raise ValueError(
                    f"{name}: task {task!r} has networks of its own, so expected none; got "
                    f"{getattr(self, name)}"
                )

    def images(self) -> Data:
        """The data, loaded once a process."""
        return load(self.data, self.subset)

    def folder(self, *inputs: Any) -> Path:
        """Where what depends on these inputs, and on network and data, is kept."""
        named = [repr(x) for x in inputs]
        return self.place(self.network, [self.images().fingerprint, self.width, self.device, named])

    def place(self, name: str, depends: list[Any]) -> Path:
        """A folder of the cache, by a name and by all else that its contents depend on."""
        versions = [se.__version__, str(torch.__version__)]
        named = json.dumps([VERSION, *versions, *depends]).encode()
        digest = hashlib.blake2b(named, digest_size=6).hexdigest()
        return self.cache / f"{name}-{digest}"

    def command(self, task: str, network: bool = True) -> str:
        """The command that makes this run, without the paths, which differ between machines.

        network: whether the task is run on a network of the settings.
        """
        said = [f"spectral-engine reproduce {task}"]
        for one in fields(self):
            value = getattr(self, one.name)
            left_out = ("data", "out", "cache", "workers", *(() if network else ("network",)))
            if one.name in left_out or value == one.default:
                continue
            said.append(f"--{one.name}" + ("" if value is True else f" {value}"))
        return " ".join(said)


def run_all(settings: Settings, works: Sequence[partial[Any]]) -> list[Any]:
    """The results of all works, in order; `workers` of them at a time, each with one thread."""
    settings.images()  # a mistake in the folder shows here, before anything is started
    if settings.workers == 1 or len(works) == 1:
        with one_thread():  # other libraries' threads change no bit
            return [work() for work in works]
    with _for_new_processes():
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(settings.workers, context, _start_worker) as pool:
            waiting = [pool.submit(work) for work in works]
            try:
                return [one.result() for one in waiting]
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


def kept(settings: Settings, name: str, compute: Callable[[], Any], *inputs: Any) -> Any:
    """The result of a piece of work, from the cache or else computed; it is JSON."""
    return remembered(settings.folder(*inputs) / f"{name}.json", compute)


def say(settings: Settings, seed: int, what: str) -> Callable[[str], None]:
    """A line on stderr for each message, with what is being done."""

    def show(message: str) -> None:
        print(f"{settings.stem} seed {seed} {what}: {message}", file=sys.stderr, flush=True)

    return show


@contextmanager
def _for_new_processes() -> Iterator[None]:
    """`_ENVIRONMENT` while processes are started, and not after: Numba refuses to change the number
    of its threads once they run.
    """
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _start_worker() -> None:
    torch.set_num_threads(1)
