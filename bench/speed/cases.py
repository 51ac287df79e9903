"""Which cases there are, which of them run by default, and who takes part in one."""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch

from bench.speed import baselines
from bench.speed.operations import BACKENDS, OPERATIONS, Implementation
from bench.speed.problem import Problem, rank_of
from bench.speed.timing import Contender

SIZES = (512, 1024, 2048, 4096, 8192)
DTYPES = ("float32", "bfloat16")
SPARSITIES = (0.9, 0.5, 0.99)
#: A parallel copy into an existing array, and one into a new array.
REFERENCES = ("copy", "copy_new")


class Case(NamedTuple):
    """One operation on one matrix, (size, size); sparsity is None where it plays no part."""

    operation: str
    size: int
    dtype: str
    sparsity: float | None
    device: str

    def __str__(self) -> str:
        sparsity = "" if self.sparsity is None else f"-{100 * self.sparsity:g}%"
        return f"{self.operation}-{self.size}-{self.dtype}{sparsity}-{self.device}"

    @property
    def reference(self) -> str:
        """The one of `REFERENCES` that is fair: into a new array if the operation makes one."""
        return "copy_new" if OPERATIONS[self.operation].allocates else "copy"

    @property
    def bytes_floor(self) -> int:
        """What must at least be moved: the operation's passes, and the float32 factors once."""
        operation = OPERATIONS[self.operation]
        factors = 2 * self.size * rank_of(self.size) * 4 if operation.low_rank else 0
        dtype: torch.dtype = getattr(torch, self.dtype)
        return operation.passes * self.size**2 * dtype.itemsize + factors

    def contenders(self, names: list[str]) -> dict[str, Contender]:
        """The references, then the named implementations; each call waits for its device."""
        problem = Problem(self.size, self.dtype, self.sparsity or 0.0, self.device)
        runs: dict[str, Implementation] = dict(zip(REFERENCES, (_copy, _copy_new), strict=True))
        for name, run in OPERATIONS[self.operation].implementations(self.device).items():
            if name in names:
                runs[name] = run
        calls: dict[str, Contender] = {name: partial(run, problem) for name, run in runs.items()}
        if self.device == "cuda":
            calls = {name: partial(_finish, call) for name, call in calls.items()}
        return calls


def _copy(p: Problem) -> object:
    return baselines.copy(p.A, p.existing)


def _copy_new(p: Problem) -> object:
    # Allocated as the backends allocate, which on the CPU is faster than Tensor.clone.
    return baselines.copy(p.A, p.backend.empty_like(p.A))


def _finish(call: Contender) -> object:
    result = call()
    torch.cuda.synchronize()
    return result


def selection(
    sizes: tuple[int, ...], devices: tuple[str, ...], *, whole: bool
) -> Iterator[tuple[Case, str]]:
    """The (case, implementation) to run, the implementations of a case one after another."""
    for device in devices:
        for size in sizes:
            for dtype in DTYPES:
                for name, operation in OPERATIONS.items():
                    for sparsity in SPARSITIES if operation.sparse else (None,):
                        case = Case(name, size, dtype, sparsity, device)
                        for implementation in operation.implementations(device):
                            if whole or affordable(case, implementation):
                                yield case, implementation


def affordable(case: Case, implementation: str) -> bool:
    """Whether it runs by default, see `test_speed`."""
    if case.sparsity not in (None, 0.9) and case.size != 1024:
        return False
    if case.size <= 1024 or implementation in BACKENDS.values():
        return True
    if implementation in ("pytorch", "numpy"):
        return case.size <= 4096
    return case.size == 4096 and case.dtype == "float32"
