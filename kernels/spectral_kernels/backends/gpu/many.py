"""Many matrices on the device, each a budget of its own, in the launches of one.

The stages are those of `pipeline`; each is one launch for all matrices that are tiled alike: of one
device and element type, with rows cut the same way. Networks have few such classes, whatever the
number of their layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from spectral_kernels.backends.deferred import BROKEN, OVERFLOW, Flaws
from spectral_kernels.backends.gpu.backend import GPUBackend
from spectral_kernels.backends.gpu.pipeline import (
    EXACT,
    FLOATS,
    INTEGERS,
    SPAN,
    SPANS,
    constants,
    float64_bits,
    fold,
    host,
)
from spectral_kernels.backends.gpu.plan import ceil_div, device_of, has_nvidia, vector_unit
from spectral_kernels.backends.gpu.triton import gated, grouped, histograms, kernels, rank, solve
from spectral_kernels.backends.protocol import Draw, Matrix, Scoring
from spectral_kernels.reference import budget as bg
from spectral_kernels.reference.laws import Law, am07_constant
from spectral_kernels.reference.stream import split_seed

#: Matrices to a launch: each takes 2 MiB for the values of the bin that is refined.
_MOST = 256
#: Programs of a launch, those that end at once included, where no strip needs more.
_PROGRAMS = 1 << 17
_FLAT_ENTRIES = 4096
_FLAT_PROGRAMS = 64


@dataclass(frozen=True)
class Layer:
    """A matrix, where its result goes, its budget and its place in the stream; column 0."""

    A: Matrix
    out: Matrix
    budget: int
    draw: Draw
    flaws: Flaws


@dataclass(frozen=True)
class Outcome:
    """nnz int64 (1,) on the device, and how to read c."""

    nnz: torch.Tensor
    c: Any


def classes(backend: GPUBackend, layers: Sequence[Layer]) -> list[list[int]]:
    """Indices of the layers that go together, at most `_MOST` at a time."""
    found: dict[Any, list[int]] = {}
    for index, layer in enumerate(layers):
        A = layer.A
        aligned = (A.storage.data_ptr() | layer.out.storage.data_ptr()) % 16 == 0
        plan = backend._plan(A, Scoring())
        key = (A.storage.device, A.dtype, plan.rows, plan.columns, vector_unit(A), aligned)
        found.setdefault(key, []).append(index)
    return [some[at : at + _MOST] for some in found.values() for at in range(0, len(some), _MOST)]


class Group:
    """Layers of one class, with their table on the device."""

    def __init__(
        self, backend: GPUBackend, layers: Sequence[Layer], law: Law, rescale: bool
    ) -> None:
        self.layers, self.law, self.rescale = layers, law, rescale
        self.A = layers[0].A
        self.device = self.A.storage.device
        plans = [backend._plan(layer.A, Scoring()) for layer in layers]
        self.rows, self.columns = plans[0].rows, plans[0].columns
        self.tiles = max(plan.column_tiles for plan in plans)
        self.whole_rows = self.tiles == 1
        # As many strips as the largest layer wants alone, unless most programs were to end at once;
        # but never so few that a program's counts overflow.
        largest = max(plan.grid[1] for plan in plans)
        rows = max(layer.A.m for layer in layers)
        fewest = ceil_div(rows * self.columns, kernels.PACKED_ENTRIES // 2)
        most = max(_PROGRAMS // (self.tiles * len(layers)), fewest, 1)
        self.strips = max(min(largest, most), fewest)
        self.strip_entries = 0
        aligned = (self.A.storage.data_ptr() | layers[0].out.storage.data_ptr()) % 16 == 0
        self.like = self.A.storage
        self.cut = {
            "UNIT": vector_unit(self.A), "ROWS": self.rows, "COLUMNS": self.columns,
            "ALIGNED": 16 if aligned else self.A.storage.element_size(),
        }  # fmt: skip
        self.table = self._table()

    def _table(self) -> torch.Tensor:
        """See `grouped`. One upload, from pinned memory, which nothing waits for."""
        columns, segment = [], 0
        for layer in self.layers:
            A, budget = layer.A, layer.budget
            parameter = self.law.parameter
            if self.law.name == "am07":
                parameter = (parameter or am07_constant(A.n)) / A.n
            strip = self.rows * ceil_div(ceil_div(A.m, self.strips), self.rows)
            self.strip_entries = max(self.strip_entries, strip * self.columns)
            segments = ceil_div(A.m, self.rows) if self.whole_rows else A.m * self.tiles
            columns.append((
                A.storage.data_ptr(), layer.out.storage.data_ptr(), A.m, A.n // vector_unit(A),
                strip, layer.draw.stream, segment, segments, A.size, budget, A.m + A.n,
                float64_bits(parameter), float64_bits(bg.trim_scale(A.m + A.n, max(budget, 1))),
            ))  # fmt: skip
            segment += segments
        self.segments = segment
        fields = list(zip(*columns, strict=True))
        pinned = torch.tensor(fields, dtype=torch.int64, pin_memory=self.device.type == "cuda")
        return pinned.to(self.device, non_blocking=True)

    def field(self, name: str) -> torch.Tensor:
        """A row of the table, int64 (layers,)."""
        return self.table[grouped.FIELDS.index(name)]

    def empty(self, *shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        """Memory for each layer."""
        return torch.empty((len(self.layers), *shape), dtype=dtype, device=self.device)

    def launch(self, kernel: Any, *arrays: Any, grid: tuple[int, int] | None = None,
               warps: int = 1, **arguments: Any) -> None:  # fmt: skip
        """Run a kernel of `grouped` over all layers."""
        tiles, strips = grid or (self.tiles, self.strips)
        with device_of(self.A):
            kernel[(tiles, strips, len(self.layers))](
                self.table, self.like, *arrays, num_warps=warps, enable_fp_fusion=False,
                **{name: self.cut[name] for name in self.cut if name in kernel.arg_names},
                **arguments,
            )  # fmt: skip

    def run(self) -> list[Outcome]:
        """Score, solve, draw and value; waits for nothing."""
        count, low = self._histogram()
        drawn = self.law.draws and all(
            0 < layer.budget < layer.A.size for layer in self.layers
        )  # fmt: skip
        return self._sample(count, low) if drawn else self._keep_largest(count)

    def _histogram(self) -> tuple[torch.Tensor, torch.Tensor]:
        programs = self.tiles * self.strips
        copies = ceil_div(programs, kernels.PACKED_ENTRIES // self.strip_entries)
        copies = max(copies, min(programs, ceil_div(16, len(self.layers))))
        table = self.empty(copies, bg.BINS).zero_()
        self.launch(grouped.histogram_many, table, copies)
        broken = self.empty().zero_()
        folded = fold(self.A, table, broken)
        for at, layer in enumerate(self.layers):
            layer.flaws.add(broken[at], BROKEN)
        return folded

    def _values(self, integers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, sums = self.empty(1 << bg.LOW_BITS).zero_(), self.empty(4, SPANS)
        self.launch(grouped.refine_many, values, integers)
        with device_of(self.A):
            histograms.fold_values[(SPANS, len(self.layers))](values, integers, sums)
        return values, sums

    def _keep_largest(self, count: torch.Tensor) -> list[Outcome]:
        layers, budgets, sizes = (len(self.layers),), self.field("BUDGET"), self.field("SIZE")
        integers, stops = self.empty(INTEGERS), self.empty()
        thresholds = self.empty(dtype=torch.int32)
        with device_of(self.A):
            rank.find_rank[layers](count, budgets, integers, **EXACT)
        values, sums = self._values(integers)
        with device_of(self.A):
            rank.finish_threshold[layers](
                values, sums, budgets, sizes, integers, thresholds, stops, **EXACT
            )
        ties = torch.zeros(self.segments, dtype=torch.int32, device=self.device)
        whole = self.whole_rows
        self.launch(grouped.count_ties_many, ties, integers, WHOLE_ROWS=whole)
        self.launch(
            grouped.find_tie_many, ties, integers, stops, self.tiles, grid=(1, 1),
            WHOLE_ROWS=whole, SPAN=gated.SEGMENTS,
        )  # fmt: skip
        kept = self.empty().zero_()
        self.launch(grouped.keep_largest_many, kept, thresholds, stops)
        scores = thresholds.view(torch.float32)
        return [
            Outcome(kept[at], partial(host, scores[at : at + 1])) for at in range(len(self.layers))
        ]

    def _sample(self, count: torch.Tensor, low: torch.Tensor) -> list[Outcome]:
        layers, shape, budgets = (len(self.layers),), self.law.shape, self.field("BUDGET")
        integers, floats = self.empty(INTEGERS), self.empty(FLOATS, dtype=torch.float64)
        with device_of(self.A):
            solve.solve_law[layers](
                count, low, budgets, self.field("PARAMETER"), self.field("SCALE"),
                self.field("SHAPE_SUM"), integers, floats, SHAPE=int(shape), **EXACT,
            )  # fmt: skip
        values, sums = self._values(integers)
        laws = self.empty(4, dtype=torch.float32)
        with device_of(self.A):
            solve.finish_law[layers](
                values, sums, budgets, integers, floats, laws, 0, SHAPE=int(shape), BY_ROW=False,
                COLUMNS=SPAN, **EXACT,
            )  # fmt: skip
        kept, (k0, k1) = self.empty().zero_(), split_seed(self.layers[0].draw.seed)
        self.launch(
            grouped.sample_many, kept, laws, k0, k1, SHAPE=int(shape), RESCALE=self.rescale,
            NVIDIA=has_nvidia(),
        )  # fmt: skip
        if self.rescale and self.A.dtype != "float64":
            found = self.empty().zero_()
            largest = max(layer.A.size for layer in self.layers)
            programs = min(ceil_div(largest, _FLAT_ENTRIES), _FLAT_PROGRAMS)
            self.launch(
                grouped.count_not_finite_many, found, laws, grid=(programs, 1), warps=4,
                GATED=self.A.dtype != "float16", ENTRIES=_FLAT_ENTRIES,
            )  # fmt: skip
            for at, layer in enumerate(self.layers):
                layer.flaws.add(found[at], OVERFLOW.format(self.A.dtype))
        return [
            Outcome(kept[at], partial(constants, laws[at : at + 1], shape))
            for at in range(len(self.layers))
        ]


def run(backend: GPUBackend, layers: Sequence[Layer], law: Law, rescale: bool) -> list[Outcome]:
    """The outcomes of all layers, in their order; all have one seed."""
    outcomes: dict[int, Outcome] = {}
    for indices in classes(backend, layers):
        group = Group(backend, [layers[index] for index in indices], law, rescale)
        outcomes.update(zip(indices, group.run(), strict=True))
    return [outcomes[index] for index in range(len(layers))]
