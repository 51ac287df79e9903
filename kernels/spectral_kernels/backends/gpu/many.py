"""The launches of the pipeline's stages for many matrices: each stage is one launch for all.

The matrices are tiled alike: they have one device and element type, and rows cut the same way.
Networks have few such classes, whatever the number of their layers.
"""

from collections.abc import Sequence
from typing import Any

import torch

from spectral_kernels.backends.gpu.launches import FLAT_ENTRIES, Launches, law_terms
from spectral_kernels.backends.gpu.plan import ceil_div, device_of, has_nvidia, vector_unit
from spectral_kernels.backends.gpu.triton import conditional, grouped, kernels
from spectral_kernels.backends.protocol import Job, Scoring
from spectral_kernels.reference import budget as bg
from spectral_kernels.reference.laws import Law, Shape
from spectral_kernels.reference.stream import split_seed

#: Matrices to a launch: each takes 2 MiB for the values of the bin that is refined.
MOST = 256
#: Programs of a launch, those that end at once included, where no strip needs more.
_PROGRAMS = 1 << 17
#: Programs of `count_not_finite_many` to a matrix.
_FLAT_PROGRAMS = 64


def launch_class(launches: Launches, job: Job) -> tuple[Any, ...] | None:
    """What matrices that go together have in common; None of one that goes alone.

    Together go matrices scored by magnitude, at the origin of their streams.
    """
    A, draw = job.A, job.draw
    if not job.scoring.plain or draw.row or draw.column:
        return None
    plan = launches.plan(A, Scoring())
    unit = vector_unit(A)
    return A.storage.device, A.dtype, plan.rows, plan.columns, unit, _aligned(job), draw.seed


def _aligned(job: Job) -> bool:
    """Whether vectors of 128 bits may be loaded and stored from its first entry on."""
    return bool((job.A.storage.data_ptr() | job.out.storage.data_ptr()) % 16 == 0)


class Many:
    """See `pipeline.Launcher`. Kernels read what they need of a matrix from a table."""

    def __init__(self, launches: Launches, jobs: Sequence[Job], law: Law) -> None:
        self.jobs = jobs
        self._A = jobs[0].A
        self._device = self._A.storage.device
        plans = [launches.plan(job.A, Scoring()) for job in jobs]
        self._rows, self._columns = plans[0].rows, plans[0].columns
        self._tiles = max(plan.column_tiles for plan in plans)
        self._whole_rows = self._tiles == 1
        # As many strips as the largest matrix wants alone, unless most programs were to end at
        # once; but never so few that a program's counts overflow.
        largest = max(plan.grid[1] for plan in plans)
        rows = max(job.A.m for job in jobs)
        fewest = ceil_div(rows * self._columns, kernels.PACKED_ENTRIES // 2)
        most = max(_PROGRAMS // (self._tiles * len(jobs)), fewest, 1)
        self._strips = max(min(largest, most), fewest)
        self._strip_entries = self._segments = 0
        self._tile = {
            "UNIT": vector_unit(self._A), "ROWS": self._rows, "COLUMNS": self._columns,
            "ALIGNED": 16 if _aligned(jobs[0]) else self._A.storage.element_size(),
        }  # fmt: skip
        self._table = self._make_table(law)

    @property
    def budgets(self) -> torch.Tensor:
        """int64 (matrices,)."""
        return self._field("BUDGET")

    @property
    def sizes(self) -> torch.Tensor:
        """int64 (matrices,)."""
        return self._field("SIZE")

    def law_terms(self, law: Law) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Those of the law that the table was made for."""
        return self._field("PARAMETER"), self._field("SCALE"), self._field("SHAPE_SUM")

    def histogram(self) -> torch.Tensor:
        programs = self._tiles * self._strips
        copies = ceil_div(programs, kernels.PACKED_ENTRIES // self._strip_entries)
        copies = max(copies, min(programs, ceil_div(16, len(self.jobs))))
        shape = (len(self.jobs), copies, bg.BINS)
        packed = torch.zeros(shape, dtype=torch.int64, device=self._device)
        self._launch(grouped.histogram_many, packed, copies)
        return packed

    def refine(self, values: torch.Tensor, integers: torch.Tensor) -> None:
        self._launch(grouped.refine_many, values, integers)

    def find_ties(self, integers: torch.Tensor, stops: torch.Tensor) -> None:
        ties = torch.zeros(self._segments, dtype=torch.int32, device=self._device)
        whole = self._whole_rows
        self._launch(grouped.count_ties_many, ties, integers, WHOLE_ROWS=whole)
        self._launch(
            grouped.find_tie_many, ties, integers, stops, self._tiles, grid=(1, 1),
            WHOLE_ROWS=whole, SPAN=conditional.SEGMENTS,
        )  # fmt: skip

    def keep_largest(self, thresholds: torch.Tensor, stops: torch.Tensor) -> torch.Tensor:
        kept = self._zeros()
        self._launch(grouped.keep_largest_many, kept, thresholds, stops)
        return kept

    def sample(self, laws: torch.Tensor, shape: Shape, rescale: bool) -> torch.Tensor:
        kept, (k0, k1) = self._zeros(), split_seed(self.jobs[0].draw.seed)
        self._launch(
            grouped.sample_many, kept, laws, k0, k1, SHAPE=int(shape), RESCALE=rescale,
            NVIDIA=has_nvidia(),
        )  # fmt: skip
        return kept

    def count_overflow(self, laws: torch.Tensor) -> torch.Tensor:
        found, largest = self._zeros(), max(job.A.size for job in self.jobs)
        programs = min(ceil_div(largest, FLAT_ENTRIES), _FLAT_PROGRAMS)
        self._launch(
            grouped.count_not_finite_many, found, laws, grid=(programs, 1), warps=4,
            CONDITIONAL=self._A.dtype != "float16", ENTRIES=FLAT_ENTRIES,
        )  # fmt: skip
        return found

    def _make_table(self, law: Law) -> torch.Tensor:
        """See `grouped`. One upload, from pinned memory, which nothing waits for."""
        columns = []
        for job in self.jobs:
            A, budget = job.A, job.budget
            strip = self._rows * ceil_div(ceil_div(A.m, self._strips), self._rows)
            self._strip_entries = max(self._strip_entries, strip * self._columns)
            segments = ceil_div(A.m, self._rows) if self._whole_rows else A.m * self._tiles
            parameter, scale, shape_sum = law_terms(law, A.m, A.n, budget)
            columns.append((
                A.storage.data_ptr(), job.out.storage.data_ptr(), A.m, A.n // vector_unit(A),
                strip, job.draw.stream, self._segments, segments, A.size, budget, shape_sum,
                parameter, scale,
            ))  # fmt: skip
            self._segments += segments
        fields = list(zip(*columns, strict=True))
        pinned = torch.tensor(fields, dtype=torch.int64, pin_memory=self._device.type == "cuda")
        return pinned.to(self._device, non_blocking=True)

    def _field(self, name: str) -> torch.Tensor:
        """A row of the table, int64 (matrices,)."""
        return self._table[grouped.FIELDS.index(name)]

    def _zeros(self) -> torch.Tensor:
        """A count for each matrix."""
        return torch.zeros(len(self.jobs), dtype=torch.int64, device=self._device)

    def _launch(self, kernel: Any, *arrays: Any, grid: tuple[int, int] | None = None,
                warps: int = 1, **arguments: Any) -> None:  # fmt: skip
        """Run a kernel of `grouped` over all matrices."""
        tiles, strips = grid or (self._tiles, self._strips)
        with device_of(self._A):
            kernel[(tiles, strips, len(self.jobs))](
                self._table, self._A.storage, *arrays, num_warps=warps, enable_fp_fusion=False,
                **{name: self._tile[name] for name in self._tile if name in kernel.arg_names},
                **arguments,
            )  # fmt: skip
