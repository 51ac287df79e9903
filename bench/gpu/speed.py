"""The speed of the Triton kernels on a device: shares of its copy bandwidth, and speed-ups.

A row is one operation on one matrix. "triton" is the project's, "pytorch" what a user writes
(`baselines`), "compiled" the same function under torch.compile. Kernels are timed alone, launched
from a graph; `sparsify` from end to end, with what it waits for.
"""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from spectral_kernels import sparsify
from spectral_kernels.backends.gpu import packed
from spectral_kernels.backends.gpu.backend import GPU
from spectral_kernels.backends.protocol import Draw, Scoring
from spectral_kernels.reference.laws import Base, Shape
from spectral_kernels.reference.patterns import NM
from spectral_kernels.reference.stream import UNIT
from triton.errors import TritonError

from bench.gpu.timing import Call, device_times, graphed, ratio
from bench.speed import baselines
from bench.speed.operations import OPERATIONS
from bench.speed.problem import Problem

DTYPES = ("float32", "bfloat16")
SPARSITY = 0.9
ROUNDS = 15
NAMES = (
    "sample", "sample_principal", "keep_largest", "histogram", "largest 2:4", "sample 2:4",
    "pack_bits", "keep_bits", "masked_product", "randomized", "principal", "magnitude",
    "magnitude_rows",
)  # fmt: skip
COPY, TRITON, PYTORCH, COMPILED = "copy", "triton", "pytorch", "compiled"


@dataclass(frozen=True)
class Operation:
    """What is timed. low_rank: it reads the float32 factors too. kernel: one launch, captured.

    passes: over the matrix in its dtype, of which a pass over its bits is a fraction.
    """

    passes: float
    ours: Call
    plain: partial[Any] | None = None
    compilable: bool = False
    kernel: bool = True
    low_rank: bool = False


@dataclass(frozen=True)
class Target:
    """A bound on one field of a row of an operation in one dtype."""

    operation: str
    dtype: str
    field: str
    bound: float

    @property
    def at_most(self) -> bool:
        """Times are bounded from above, shares and speed-ups from below."""
        return self.field == "ratio_copy"

    def concerns(self, row: dict[str, Any]) -> bool:
        """Whether a row is of this operation and dtype, and was measured."""
        mine = (row["operation"], row["dtype"]) == (self.operation, self.dtype)
        return mine and self.field in row

    def reached(self, row: dict[str, Any]) -> bool:
        """Whether a row that it concerns keeps the bound."""
        value = row[self.field]
        return bool(value <= self.bound if self.at_most else value >= self.bound)


TARGETS = (
    Target("sample", "float32", "share", 0.92),
    Target("sample", "bfloat16", "share", 0.85),
    Target("sample_principal", "bfloat16", "share", 0.65),
    Target("randomized", "float32", "ratio_copy", 1.9),
    Target("randomized", "float32", "speedup_pytorch", 8.0),
    Target("randomized", "float32", "speedup_compiled", 2.0),
    Target("principal", "float32", "speedup_pytorch", 10.0),
    Target("principal", "float32", "speedup_compiled", 3.0),
)


def operations(p: Problem) -> dict[str, Operation]:
    """What is timed on one matrix; the budgets of the kernels are solved beforehand."""
    A, out, device = GPU.matrix(p.A), GPU.matrix(p.existing), p.A.device
    laws = torch.tensor([[p.c * UNIT, 0.0, 0.0, 1.0]], dtype=torch.float32, device=device)
    pattern = torch.tensor([p.threshold], dtype=torch.float32, device=device).view(torch.int32)
    stop = torch.tensor([p.A.numel()], device=device)
    low_rank = Scoring(Base.PRINCIPAL, p.left, p.right)
    arguments: dict[str, Any] = {"sparsity": SPARSITY, "law": "l1"}
    draw, mask_pass = Draw(), 1 / (8 * p.A.itemsize)
    return {
        "sample": Operation(
            passes=2,
            ours=lambda: GPU.launch_sample(A, Scoring(), laws, Shape.L1, True, draw, out),
            plain=partial(baselines.sample, p.A, p.c),
            compilable=True,
        ),
        "sample_principal": Operation(
            passes=2,
            ours=lambda: GPU.launch_sample(A, low_rank, laws, Shape.L1, False, draw, out),
            low_rank=True,
        ),
        "keep_largest": Operation(
            passes=2,
            ours=lambda: GPU.launch_keep_largest(A, Scoring(), pattern, stop, out),
            plain=partial(baselines.keep_largest, p.A, p.threshold),
            compilable=True,
        ),
        "histogram": Operation(
            passes=1,
            ours=lambda: GPU.launch_histogram(A, Scoring()),
            plain=partial(baselines.histogram, p.A),
        ),
        "largest 2:4": Operation(
            passes=2,
            ours=lambda: GPU.launch_keep_largest_of(A, Scoring(), NM(2, 4), out),
            plain=partial(baselines.largest_2_of_4, p.A),
            compilable=True,
        ),
        "sample 2:4": Operation(
            passes=2,
            ours=lambda: GPU.launch_sample_of(
                A, Scoring(), NM(2, 4), Shape.L1, True, draw, out
            ),
        ),
        "pack_bits": Operation(
            passes=1 + mask_pass,
            ours=lambda: packed.pack_bits(p.A),
            plain=partial(baselines.pack_bits, p.A),
            compilable=True,
        ),
        "keep_bits": Operation(
            passes=2 + mask_pass,
            ours=lambda: packed.keep_bits(p.A, p.bits),
        ),
        "masked_product": Operation(
            passes=2 * 4 / p.A.itemsize + mask_pass,  # it reads and writes float32
            ours=lambda: packed.masked_product(p.left, p.right, p.bits, p.wide, 0.3),
            plain=partial(baselines.masked_product, p.left, p.right, p.mask, p.wide, 0.3),
            compilable=True,
            low_rank=True,
        ),
        "randomized": Operation(
            passes=OPERATIONS["randomized"].passes,
            ours=lambda: sparsify(p.A, rescale=True, **arguments),
            plain=partial(baselines.randomized, p.A, p.kept),
            compilable=True,
            kernel=False,
        ),
        "principal": Operation(
            passes=OPERATIONS["principal"].passes,
            ours=lambda: sparsify(
                p.A, score="principal", factors=(p.left, p.right), **arguments
            ),
            plain=partial(baselines.principal, p.A, p.left, p.right, p.kept),
            compilable=True,
            kernel=False,
            low_rank=True,
        ),
        "magnitude": Operation(
            passes=OPERATIONS["magnitude"].passes,
            ours=lambda: sparsify(p.A, sparsity=SPARSITY),
            plain=partial(baselines.magnitude, p.A, p.kept),
            kernel=False,
        ),
        "magnitude_rows": Operation(
            passes=OPERATIONS["magnitude_rows"].passes,
            ours=lambda: sparsify(p.A, sparsity=SPARSITY, group="row"),
            plain=partial(baselines.magnitude_rows, p.A, p.kept_per_row),
            kernel=False,
        ),
    }  # fmt: skip


def contenders(operation: Operation, p: Problem, device: str) -> dict[str, Call]:
    """The copy and the implementations, each called once already, which compiles it."""
    calls: dict[str, Call] = {COPY: partial(baselines.copy, p.A, p.existing)}
    calls[TRITON] = operation.ours
    if operation.kernel:
        calls = {name: graphed(call, device) for name, call in calls.items()}
    plain = operation.plain
    if plain is not None:
        calls[PYTORCH] = plain
        if operation.compilable and device != "cpu":  # there it would need a C++ compiler
            calls[COMPILED] = partial(torch.compile(plain.func, dynamic=False), *plain.args)
    for call in calls.values():
        call()
    return calls


def measure(
    operation: str, what: Operation, p: Problem, device: str, rounds: int
) -> dict[str, Any]:
    """A row of one operation."""
    times = device_times(contenders(what, p, device), device, rounds)
    m, n = p.A.shape
    moved = round(what.passes * p.A.nbytes) + (4 * (m + n) * p.rank if what.low_rank else 0)
    seconds = {name: statistics.median(spent) for name, spent in times.items()}
    row: dict[str, Any] = {
        "operation": operation,
        "shape": [m, n],
        "dtype": str(p.A.dtype).removeprefix("torch."),
        "sparsity": SPARSITY,
        "bytes": moved,
        "ms": {name: 1e3 * spent for name, spent in seconds.items()},
        "gb_per_s": moved / seconds[TRITON] / 1e9,
        "copy_gb_per_s": 2 * p.A.nbytes / seconds[COPY] / 1e9,
        "ratio_copy": ratio(times, TRITON, COPY),
    }
    row["share"] = moved / (2 * p.A.nbytes) / row["ratio_copy"]
    for name in (PYTORCH, COMPILED):
        if name in times:
            row[f"speedup_{name}"] = ratio(times, name, TRITON)
    return row


def rows(
    sizes: tuple[int, ...], device: str, deadline: float, rounds: int = ROUNDS
) -> Iterator[dict[str, Any]]:
    """The rows, the first size first; one that failed or came after the deadline says so."""
    for size in sizes:
        for dtype in DTYPES:
            p: Problem | None = None
            for name in NAMES:
                row: dict[str, Any] = {"operation": name, "shape": [size, size], "dtype": dtype}
                if time.monotonic() > deadline:
                    yield row | {"said": "left out: out of time"}
                    continue
                try:
                    p = p or Problem(size, dtype, SPARSITY, device)
                    yield measure(name, operations(p)[name], p, device, rounds)
                except (RuntimeError, TritonError) as error:  # memory, a compiler, a launch
                    said = str(error).strip().partition("\n")[0]
                    yield row | {"said": f"{type(error).__name__}: {said}"}
