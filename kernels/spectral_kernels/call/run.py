"""The body of every call: matrices are checked and scored, and handed to their backends' pipelines.

One matrix is a list of one. A backend gets all matrices of a call at once, so that on a device they
share their launches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from spectral_kernels._validation import word
from spectral_kernels.backends.deferred import NONFINITE, OVERFLOW, Deferred
from spectral_kernels.backends.protocol import Backend, Draw, Job, Kept, Pipeline
from spectral_kernels.call.arguments import (
    check_pattern,
    check_vector,
    entries_to_keep,
    groups_too_small,
    make_scoring,
)
from spectral_kernels.call.budget import asked, missed
from spectral_kernels.call.result import Sparse
from spectral_kernels.call.shared import Shared
from spectral_kernels.reference.laws import GROUP_NAMES, named_law
from spectral_kernels.reference.patterns import NM, Blocks, parse_pattern

#: Longer rows are solved one by one, as tensors: their scores would not stay in a core's cache.
LONGEST_CACHED_ROW = 1 << 16
#: The counter of the stream holds 32 bits of column / 4.
LAST_COLUMN = 1 << 34


@dataclass(frozen=True)
class Request:
    """One matrix of a call: the array as the caller gave it, its backend, and what is its own."""

    backend: Backend
    weight: Any
    sparsity: float | None
    draw: Draw
    score: str = "magnitude"
    factors: tuple[Any, Any] | None = None
    mixture: tuple[float, float] = (0.0, 0.0)
    row: Any = None
    column: Any = None


def check_shared(
    law: str, law_parameter: float | None, rescale: bool, group: str, pattern: str | None,
    check: bool,
) -> Shared:  # fmt: skip
    """The arguments that all matrices of a call share.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.
    """
    if not isinstance(check, bool):
        raise TypeError(f"check: expected a bool; got {check!r}")
    if group not in GROUP_NAMES:
        raise ValueError(f"group: expected one of {', '.join(GROUP_NAMES)}; got {group!r}")
    solved_law = named_law(law, law_parameter)
    chosen = None if pattern is None else parse_pattern(pattern)
    if not isinstance(rescale, bool):
        raise TypeError(f"rescale: expected a bool; got {rescale!r}")
    return Shared(solved_law, rescale, group == "row", chosen, check)


def check_draw(seed: int, stream: int, row_offset: int, column_offset: int) -> Draw:
    """Where a matrix lies in the random stream.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.
    """
    return Draw(
        word(seed, "seed", 64),
        word(stream, "stream", 32),
        word(row_offset, "row_offset", 63),
        word(column_offset, "column_offset", 34),
    )


def run(requests: Sequence[Request], shared: Shared) -> list[Sparse]:
    """Sparsify each matrix: check it, score it, solve its budget, keep or draw, write.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came; with
            `shared.check` also of what only the data show.
    """
    results, jobs = [], []
    for request in requests:
        result, job = _job(request, shared)
        results.append(result)
        jobs.append(job)
    by_backend: dict[Backend, list[int]] = {}
    for index, request in enumerate(requests):
        by_backend.setdefault(request.backend, []).append(index)
    found: dict[int, Kept] = {}
    for backend, indices in by_backend.items():
        some = [requests[index] for index in indices], [jobs[index] for index in indices]
        kept = _run_on(backend, *some, shared)
        found.update(zip(indices, kept, strict=True))
    made = [
        Sparse(
            result,
            found[index],
            jobs[index].deferred,
            asked(jobs[index], requests[index].sparsity, shared),
        )
        for index, result in enumerate(results)
    ]
    for request, job, sparse in zip(requests, jobs, made, strict=True):
        if shared.check and not request.backend.captured():
            sparse.check()
            sparse.missed = missed(
                request.backend, job, sparse.nnz, sparse.asked, request.row, shared
            )
    return made


def _job(request: Request, shared: Shared) -> tuple[Any, Job]:
    """The array of the result, and what the backend is to do to fill it."""
    backend, law, draw = request.backend, shared.law, request.draw
    A = backend.matrix(request.weight)
    size = A.n if shared.by_row else A.size
    budget = entries_to_keep(size, request.sparsity)
    if draw.column + A.n > LAST_COLUMN:
        raise ValueError(
            f"column_offset: expected columns under 2^34; got {draw.column} + {A.n} columns"
        )
    if shared.pattern is not None:
        check_pattern(shared.pattern, A, law, draw)
        if backend.captured():
            raise ValueError(
                "pattern: expected None in a CUDA graph's capture; "
                f"got {str(shared.pattern)!r}"
            )  # fmt: skip
    deferred = Deferred()
    # The histogram finds what is not finite, unless B hides it or the row sums meet it first.
    if request.score != "magnitude" or law.row_weights != "none":
        deferred.add(
            backend.not_finite(A),
            "weight: expected finite entries that fit float32; got {} that are NaN or infinite",
        )
    if A.dtype == "float64" and budget < size:
        deferred.add(
            groups_too_small(A, shared.by_row),
            "weight: expected a largest entry of 2^-126 or more, since entries are scored in "
            "float32; got {} groups under it; multiply them by a power of two first",
        )
    row = request.row
    if law.row_weights != "none":
        total = budget * A.m if shared.by_row else budget
        own = backend.pipeline(law, shared.rescale).row_weights(A, total)
        row = own if row is None else own * check_vector(backend, row, "row", A.m, deferred)
    scoring = make_scoring(
        backend, A, request.score, request.factors, request.mixture, row, request.column, deferred
    )
    result = backend.empty_like(request.weight)
    return result, Job(A, backend.matrix(result), scoring, draw, budget, deferred)


def _run_on(
    backend: Backend, requests: list[Request], jobs: list[Job], shared: Shared
) -> list[Kept]:
    """Hand the jobs of one backend to what does their kind of group."""
    pattern = shared.pattern
    if isinstance(pattern, Blocks):
        pairs = zip(requests, jobs, strict=True)
        return [_keep_blocks(request, job, pattern, shared) for request, job in pairs]
    if isinstance(pattern, NM):
        return [_run_groups(backend, job, pattern, shared) for job in jobs]
    pipeline = backend.pipeline(shared.law, shared.rescale)
    if not shared.by_row:
        return pipeline.run(jobs)
    return [_run_rows(pipeline, job) for job in jobs]


def _run_rows(pipeline: Pipeline, job: Job) -> Kept:
    """Each row a group of its own; long rows go as matrices."""
    if job.A.n <= LONGEST_CACHED_ROW:
        return pipeline.run_rows(job)
    rows = pipeline.run(_rows(job))
    return Kept(
        sum(row.nnz for row in rows), lambda: np.concatenate([row.constants() for row in rows])
    )


def _rows(job: Job) -> list[Job]:
    """Each row as a matrix of its own."""
    draw = job.draw
    return [
        replace(
            job, A=job.A.rows(i, i + 1), out=job.out.rows(i, i + 1),
            scoring=job.scoring.rows(i, i + 1), draw=replace(draw, row=draw.row + i),
        )
        for i in range(job.A.m)
    ]  # fmt: skip


def _run_groups(backend: Backend, job: Job, pattern: NM, shared: Shared) -> Kept:
    """Each N of M a group of its own; waits for the device."""
    A, law, rescale = job.A, shared.law, shared.rescale
    if law.draws:
        nnz, nonfinite = backend.sample_of(
            A, job.scoring, pattern, law.shape, rescale, job.draw, job.out
        )
    else:
        nnz, nonfinite = backend.keep_largest_of(A, job.scoring, pattern, job.out)
    job.deferred.add(nonfinite, NONFINITE)
    narrow = A.dtype != "float64"  # which has room for the A / p of any score
    if law.draws and rescale and narrow and not backend.all_finite(job.out):
        raise ValueError(OVERFLOW.format(A.dtype).format("some"))
    return Kept(nnz, lambda: np.array([np.nan]))


def _keep_blocks(request: Request, job: Job, blocks: Blocks, shared: Shared) -> Kept:
    """The blocks of largest score: the threshold of a matrix that has an entry for each block.

    Waits for the device.
    """
    backend = request.backend
    scores = backend.block_scores(job.A, job.scoring, blocks)
    threshold = Shared(shared.law, by_row=shared.by_row)
    kept = run([Request(backend, scores, request.sparsity, Draw())], threshold)[0]
    c = kept.c
    return Kept(backend.keep_blocks(job.A, blocks, kept.weight, job.out), lambda: np.array([c]))
