"""Whether a draw kept as many entries as its budget asked for."""

import math
from typing import Any

from spectral_kernels.backends.protocol import Backend, Job
from spectral_kernels.call.arguments import entries_to_keep
from spectral_kernels.call.shared import Shared
from spectral_kernels.reference.laws import Base
from spectral_kernels.reference.patterns import Blocks
from spectral_kernels.reference.stream import UNIT

#: What chance explains, in standard deviations of a count, and what the solver does, as a share.
_DEVIATIONS, _SHARE = 6.0, 0.01
#: Entries that are looked at together.
_PANEL = 1 << 20


def asked(job: Job, sparsity: float | None, shared: Shared) -> int:
    """The entries that the budget of a job asks for."""
    A, pattern = job.A, shared.pattern
    if isinstance(pattern, Blocks):
        down, across = A.m // pattern.rows, A.n // pattern.columns
        size, groups = (across, down) if shared.by_row else (down * across, 1)
        return entries_to_keep(size, sparsity) * groups * pattern.rows * pattern.columns
    return job.budget * A.m if shared.by_row else job.budget


def missed(backend: Backend, job: Job, nnz: int, wanted: int, row: Any, shared: Shared) -> bool:
    """Whether neither chance nor a lack of entries explains how many were kept.

    Entries are counted only where the number is far off. `row` is the vector of the caller, without
    that of the law.
    """
    A = job.A
    size = A.n if shared.by_row else A.size
    if shared.pattern is not None or not shared.law.draws_some(job.budget, size):
        return False
    # Probabilities are cut to multiples of 2^-24.
    slack = _DEVIATIONS * math.sqrt(wanted) + _SHARE * wanted + A.size / UNIT
    if abs(nnz - wanted) <= slack:
        return False
    return abs(nnz - _reachable(backend, job, row, shared)) > slack


def _reachable(backend: Backend, job: Job, row: Any, shared: Shared) -> int:
    """The entries that the score values at more than 0, at most the budget of each group."""
    A, scoring = job.A, job.scoring
    if scoring.base != Base.MAGNITUDE:
        if not shared.by_row:
            return int(backend.histogram(A, scoring)[0].sum())
        rows = ((A.rows(i, i + 1), scoring.rows(i, i + 1)) for i in range(A.m))
        return sum(min(job.budget, int(backend.histogram(*one)[0].sum())) for one in rows)
    given = None if row is None else backend.vector(row, A) > 0
    total = 0
    for i in range(0, A.m, step := max(1, _PANEL // A.n)):
        part = A.rows(i, min(i + step, A.m))
        words = part.storage.reshape(part.m, part.n)
        if str(words.dtype) == "uint16":  # a 16-bit float, of which -0 is the sign alone
            words = words & 0x7FFF
        found = words != 0
        if scoring.column is not None:
            found = found & (scoring.column > 0)
        if given is not None:
            found = found & given[i : i + part.m, None]
        counts = found.sum(-1)
        total += int((counts.clip(max=job.budget) if shared.by_row else counts).sum())
    return total if shared.by_row else min(total, job.budget)
