"""The launches of the pipeline's stages for one matrix, whatever its scoring."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from spectral_kernels.backends.gpu.launches import Launches, law_terms
from spectral_kernels.backends.gpu.triton import conditional
from spectral_kernels.backends.protocol import Job
from spectral_kernels.reference.laws import Law, Shape


@dataclass(frozen=True)
class Single:
    """See `pipeline.Launcher`. Kernels take what they need of the matrix as numbers."""

    launches: Launches
    job: Job

    @property
    def jobs(self) -> Sequence[Job]:
        """The one."""
        return (self.job,)

    @property
    def budgets(self) -> int:
        """The budget of the matrix."""
        return self.job.budget

    @property
    def sizes(self) -> int:
        """The entries of the matrix."""
        return self.job.A.size

    def law_terms(self, law: Law) -> tuple[int, int, int]:
        return law_terms(law, self.job.A.m, self.job.A.n, self.job.budget)

    def histogram(self) -> torch.Tensor:
        return self.launches.launch_histogram(self.job.A, self.job.scoring).unsqueeze(0)

    def refine(self, values: torch.Tensor, integers: torch.Tensor) -> None:
        A = self.job.A
        plan = self.launches.plan(A, self.job.scoring)
        plan.launch(conditional.refine_cut, A.storage, values, integers)

    def find_ties(self, integers: torch.Tensor, stops: torch.Tensor) -> None:
        A = self.job.A
        plan = self.launches.plan(A, self.job.scoring)
        ties = torch.zeros(plan.segments, dtype=torch.int32, device=A.storage.device)
        whole = plan.whole_rows
        plan.launch(conditional.count_ties, A.storage, ties, integers, WHOLE_ROWS=whole)
        plan.launch(
            conditional.find_tie, A.storage, ties, integers, stops, grid=(1,),
            segments=ties.numel(), tiles=plan.column_tiles, WHOLE_ROWS=whole,
            SEGMENTS=conditional.SEGMENTS,
        )  # fmt: skip

    def keep_largest(self, thresholds: torch.Tensor, stops: torch.Tensor) -> torch.Tensor:
        job = self.job
        return self.launches.launch_keep_largest(job.A, job.scoring, thresholds, stops, job.out)

    def sample(self, laws: torch.Tensor, shape: Shape, rescale: bool) -> torch.Tensor:
        job = self.job
        return self.launches.launch_sample(
            job.A, job.scoring, laws, shape, rescale, job.draw, job.out
        )

    def count_overflow(self, laws: torch.Tensor) -> torch.Tensor:
        # Where scores are the entries, the scale of the largest tells whether A / p may overflow.
        job = self.job
        telling = job.scoring.plain and len(laws) == 1 and job.A.dtype != "float16"
        return self.launches.not_finite(job.out, laws if telling else None)
