"""Patterns of zeros on the GPU: the launches of N of M, and blocks by torch's own operations."""

from dataclasses import replace
from typing import Any

import torch

from spectral_kernels.backends.gpu.launches import Launches
from spectral_kernels.backends.gpu.plan import Plan, has_nvidia
from spectral_kernels.backends.gpu.triton import nm
from spectral_kernels.backends.protocol import Draw, Matrix, Scoring
from spectral_kernels.reference.laws import Shape
from spectral_kernels.reference.patterns import LEAST_SCORE, NM, Blocks
from spectral_kernels.reference.stream import split_seed

_QUAD = 4
#: Entries of a tile: a group's own arithmetic takes up registers.
_ENTRIES = 512


class PatternLaunches(Launches):
    """What is launched for patterns; `reference.patterns` says what they are."""

    def launch_keep_largest_of(
        self, A: Matrix, scoring: Scoring, pattern: NM, out: Matrix
    ) -> torch.Tensor:
        """As `keep_largest_of`, without waiting: (2,) int64 of nonzeros and scores not finite."""
        counts = torch.zeros(2, dtype=torch.int64, device=A.storage.device)
        self._nm_plan(A, scoring, pattern, 0).launch(
            nm.keep_largest_of, A.storage, out.storage, counts, KEEP=pattern.keep, OF=pattern.of
        )
        return counts

    def launch_sample_of(
        self, A: Matrix, scoring: Scoring, pattern: NM, shape: Shape, rescale: bool, draw: Draw,
        out: Matrix,
    ) -> torch.Tensor:  # fmt: skip
        """As `sample_of`, without waiting: (2,) int64 of nonzeros and scores not finite."""
        counts = torch.zeros(2, dtype=torch.int64, device=A.storage.device)
        k0, k1 = split_seed(draw.seed)
        quad, skip = divmod(draw.column, _QUAD)
        self._nm_plan(A, scoring, pattern, skip).launch(
            nm.sample_of, A.storage, out.storage, counts, row_offset=draw.row, quad_offset=quad,
            stream_id=draw.stream, k0=k0, k1=k1, SHAPE=int(shape), KEEP=pattern.keep,
            OF=pattern.of, RESCALE=rescale, SKIP=skip, NVIDIA=has_nvidia(),
        )  # fmt: skip
        return counts

    def block_scores(self, A: Matrix, scoring: Scoring, pattern: Blocks) -> torch.Tensor:
        """As the protocol says; an addition to every block at a time, in the oracle's order."""
        p, q = A.m // pattern.rows, A.n // pattern.columns
        scores = self.launch_score_bits(A, scoring).view(torch.float32)
        wide = scores.reshape(p, pattern.rows, q, pattern.columns)
        total = torch.zeros((p, q), dtype=torch.float64, device=scores.device)
        for i in range(pattern.rows):
            for j in range(pattern.columns):
                total += wide[:, i, :, j].double().square()
        # By a tensor: a plain number would be multiplied by its reciprocal, which rounds twice.
        size = torch.full_like(total[:1, :1], pattern.rows * pattern.columns)
        mean = (total / size).sqrt()
        return mean.to(torch.float32).clamp(min=LEAST_SCORE)

    def keep_blocks(self, A: Matrix, pattern: Blocks, kept: Any, out: Matrix) -> int:
        p, q = A.m // pattern.rows, A.n // pattern.columns
        shape = (p, pattern.rows, q, pattern.columns)
        dropped = kept.reshape(p, 1, q, 1) == 0
        target = out.storage.view(shape)
        target.copy_(A.storage.view(shape)).masked_fill_(dropped, 0.0)
        return int(torch.count_nonzero(target))

    def _nm_plan(self, A: Matrix, scoring: Scoring, pattern: NM, skip: int) -> Plan:
        if pattern.of & (pattern.of - 1):
            raise ValueError(
                "pattern: on a GPU, expected N of M with M a power of two; "
                f"got {str(pattern)!r}; move the weight to the CPU"
            )
        plan = self.plan(A, scoring, skip)
        if plan.warps > 1:
            return plan
        columns = max(min(plan.columns, _ENTRIES), pattern.of)
        return replace(plan, columns=columns, rows=max(_ENTRIES // columns, 1))
