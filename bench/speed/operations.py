"""The operations, and each one's implementations.

An implementation is a function of a `Problem`. "oracle" is the NumPy reference of the package,
"pytorch" what a user writes, and the backends are the project's own: "numba" on the CPU, "triton"
on CUDA. Other names are further ways that PyTorch users go.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from spectral_kernels import sparsify
from spectral_kernels.backends.protocol import Draw, LawTable, Scoring, Thresholds
from spectral_kernels.reference import oracle
from spectral_kernels.reference.laws import Base, Shape
from spectral_kernels.reference.stream import UNIT

from bench.speed import baselines
from bench.speed.problem import Problem

#: The name of the backend's implementation, by device.
BACKENDS = {"cpu": "numba", "cuda": "triton"}
#: Implementations in NumPy, which works on the CPU alone.
ON_CPU = ("oracle", "numpy")

Implementation = Callable[[Problem], Any]


@dataclass(frozen=True)
class Operation:
    """An operation on one matrix.

    passes: reads and writes of the matrix that it needs, which is its floor.
    allocates: it returns a new array, so that a copy into a new array is its fair reference.
    sparse: a sparsity plays a part. low_rank: it reads the factors too.
    """

    passes: int
    allocates: bool
    plain: dict[str, Implementation]
    backend: Implementation | None = None
    sparse: bool = True
    low_rank: bool = False

    def implementations(self, device: str) -> dict[str, Implementation]:
        """Those for a device, by name, the backend first."""
        ours = {} if self.backend is None else {BACKENDS[device]: self.backend}
        return ours | {
            name: run for name, run in self.plain.items() if device == "cpu" or name not in ON_CPU
        }


def _law_scale(p: Problem) -> oracle.Scale:
    return oracle.Scale(float(np.float32(p.c * UNIT)))


def _sample_oracle(p: Problem) -> np.ndarray:
    t = oracle.probabilities(oracle.score(p.values), Shape.L1, _law_scale(p))
    return oracle.sample(p.values, t, rescale=True, seed=0, stream=0)


def _sample(p: Problem) -> int:
    law = _law_scale(p)
    table = LawTable(np.array([[law.C, law.alpha, law.beta, law.scale]], np.float32), rescale=True)
    out = p.backend.matrix(p.existing)
    return p.backend.sample(p.matrix, Scoring(), table, Draw(), out)


def _keep_largest_oracle(p: Problem) -> np.ndarray:
    s = oracle.score(p.values)
    return oracle.keep_scores(s, p.values, np.float32(p.threshold), s.size)


def _keep_largest(p: Problem) -> int:
    pattern = np.array([p.threshold], np.float32).view(np.uint32)
    thresholds = Thresholds(pattern, np.array([p.A.numel()]))
    out = p.backend.matrix(p.existing)
    return p.backend.keep_largest(p.matrix, Scoring(), thresholds, out)


def _draw_oracle(p: Problem, s: np.ndarray, rescale: bool) -> np.ndarray:
    t = oracle.probabilities(s, Shape.L1, oracle.solve(s, Shape.L1, 0.0, p.kept))
    return oracle.sample(p.values, t, rescale=rescale, seed=0, stream=0)


def _principal_oracle(p: Problem) -> np.ndarray:
    left, right = p.factors
    s = oracle.score(p.values, Base.PRINCIPAL, left @ right)
    return _draw_oracle(p, s, rescale=False)


def _magnitude_oracle(p: Problem) -> np.ndarray:
    return np.where(oracle.threshold_mask(oracle.score(p.values), p.kept), p.values, 0)


def _magnitude_rows_oracle(p: Problem) -> np.ndarray:
    s = oracle.score(p.values)
    rows = [oracle.threshold_mask(s[i : i + 1], p.kept_per_row) for i in range(len(s))]
    return np.where(np.concatenate(rows), p.values, 0)


OPERATIONS: dict[str, Operation] = {
    "copy": Operation(
        passes=2,
        allocates=False,
        sparse=False,
        plain={
            "pytorch": lambda p: p.existing.copy_(p.A),
            "numpy": lambda p: baselines.numpy_copy(p.A, p.existing),
        },
    ),
    "copy_new": Operation(
        passes=2,
        allocates=True,
        sparse=False,
        plain={
            "pytorch": lambda p: p.A.clone(),
            "numpy": lambda p: baselines.numpy_copy_new(p.A),
        },
    ),
    "histogram": Operation(
        passes=1,
        allocates=False,
        sparse=False,
        backend=lambda p: p.backend.histogram(p.matrix, Scoring()),
        plain={
            "pytorch": lambda p: baselines.histogram(p.A),
            "oracle": lambda p: oracle.histogram(oracle.score(p.values)),
        },
    ),
    "sample": Operation(
        passes=2,
        allocates=False,
        backend=_sample,
        plain={"pytorch": lambda p: baselines.sample(p.A, p.c), "oracle": _sample_oracle},
    ),
    "keep_largest": Operation(
        passes=2,
        allocates=False,
        backend=_keep_largest,
        plain={
            "pytorch": lambda p: baselines.keep_largest(p.A, p.threshold),
            "oracle": _keep_largest_oracle,
        },
    ),
    "randomized": Operation(
        passes=3,  # the budget reads it once more
        allocates=True,
        backend=lambda p: sparsify(p.A, sparsity=p.sparsity, law="l1", rescale=True),
        plain={
            "pytorch": lambda p: baselines.randomized(p.A, p.kept),
            "bisection": lambda p: baselines.randomized_bisection(p.A, p.kept),
            "oracle": lambda p: _draw_oracle(p, oracle.score(p.values), rescale=True),
        },
    ),
    "magnitude": Operation(
        passes=3,
        allocates=True,
        backend=lambda p: sparsify(p.A, sparsity=p.sparsity),
        plain={
            "pytorch": lambda p: baselines.magnitude(p.A, p.kept),
            "l1_unstructured": lambda p: baselines.magnitude_prune(p.A, p.kept),
            "oracle": _magnitude_oracle,
        },
    ),
    "magnitude_rows": Operation(
        passes=2,  # a row stays in a core's cache between its budget and its result
        allocates=True,
        backend=lambda p: sparsify(p.A, sparsity=p.sparsity, group="row"),
        plain={
            "pytorch": lambda p: baselines.magnitude_rows(p.A, p.kept_per_row),
            "oracle": _magnitude_rows_oracle,
        },
    ),
    "principal": Operation(
        passes=3,
        allocates=True,
        low_rank=True,
        backend=lambda p: sparsify(
            p.A, sparsity=p.sparsity, law="l1", score="principal", factors=(p.left, p.right)
        ),
        plain={
            "pytorch": lambda p: baselines.principal(p.A, p.left, p.right, p.kept),
            "svd_lowrank": lambda p: baselines.principal_svd(p.A, p.rank, p.kept),
            "oracle": _principal_oracle,
        },
    ),
}
