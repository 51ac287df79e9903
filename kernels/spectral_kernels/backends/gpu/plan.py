"""How a matrix is cut into tiles and dealt out to the programs of a launch."""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad

from spectral_kernels.backends.gpu.triton.elementwise import INTERPRETED
from spectral_kernels.backends.protocol import Matrix, Scoring
from spectral_kernels.reference.laws import Base

#: The second axis of a CUDA grid.
_MAX_STRIPS = 65535
#: Programs that fill a large device several times over; from there on strips get longer.
_PROGRAMS = 1 << 15
_MAX_TILES = 16
#: Of a thread that makes B: three programs of 128 threads fit into the 65,536 of a multiprocessor.
LOW_RANK_REGISTERS = 168


def ceil_div(count: int, size: int) -> int:
    """Pieces of `size` that cover `count`."""
    return -(-count // size)


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on tensors of the CPU."""
    return bool(INTERPRETED.value)


def captured() -> bool:
    """Whether calls are being captured in a CUDA graph, so that nothing can be read."""
    return not interpreted() and torch.cuda.is_current_stream_capturing()


def has_nvidia() -> bool:
    """Whether kernels are compiled for NVIDIA, as opposed to AMD or the interpreter."""
    return not interpreted() and torch.version.hip is None


def device_of(A: Matrix) -> Any:
    """The device that a launch needs to be current."""
    return torch.cuda.device(A.storage.device) if A.storage.is_cuda else nullcontext()


def vector_unit(A: Matrix) -> int:
    """The most entries of 128 bits that divide a row."""
    return math.gcd(A.n, 16 // A.storage.element_size())


def padded_factors(
    left: torch.Tensor, right: torch.Tensor, depth: int
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """left (m, k), right (k, n) with zeros up to a multiple of `depth`, and which it is."""
    depths = ceil_div(left.shape[1], depth)
    missing = depths * depth - left.shape[1]
    if missing:
        left, right = pad(left, (0, missing)), pad(right, (0, 0, 0, missing))
    return left, right, depths


@dataclass(frozen=True)
class Plan:
    """Tiles of rows x columns, and the arguments that kernels take of a matrix and its scoring.

    Column tiles start `skip` columns before the matrix; depth is that of B = left @ right; a
    program has `warps` warps.
    """

    A: Matrix
    scoring: Scoring
    skip: int
    rows: int
    columns: int
    depth: int
    warps: int

    @property
    def column_tiles(self) -> int:
        """Tiles to a row of the matrix."""
        return ceil_div(self.A.n + self.skip, self.columns)

    @property
    def row_tiles(self) -> int:
        """Tiles to a column of the matrix."""
        return ceil_div(self.A.m, self.rows)

    @property
    def strip(self) -> int:
        """Rows to a program: longer where there is work enough, as the grid's second axis needs."""
        wanted = min(self.row_tiles * self.column_tiles // _PROGRAMS, _MAX_TILES)
        needed = ceil_div(self.row_tiles, _MAX_STRIPS)
        return self.rows * max(wanted, needed, 1)

    @property
    def grid(self) -> tuple[int, int]:
        """Column tiles and strips."""
        return self.column_tiles, ceil_div(self.A.m, self.strip)

    @property
    def program_entries(self) -> int:
        """The most entries that a program sees."""
        return self.strip * self.columns

    @property
    def whole_rows(self) -> bool:
        """Whether a tile spans rows: then it is a run of the flat matrix."""
        return self.column_tiles == 1

    @property
    def segments(self) -> tuple[int, int]:
        """Shape of the table of `count_between`."""
        return (self.row_tiles, 1) if self.whole_rows else (self.A.m, self.column_tiles)

    def segment(self, i: int, tile: int) -> tuple[slice, slice]:
        """Rows and columns of an entry of that table."""
        if self.whole_rows:
            return slice(i * self.rows, min((i + 1) * self.rows, self.A.m)), slice(0, self.A.n)
        last = min((tile + 1) * self.columns, self.A.n)
        return slice(i, i + 1), slice(tile * self.columns, last)

    def launch(
        self, kernel: Any, *arrays: Any, grid: tuple[int, ...] | None = None, **arguments: Any
    ) -> None:
        """Run a kernel; `arrays` are the arguments before m, `arguments` those of its own."""
        scoring, device, unit = self.scoring, self.A.storage.device, vector_unit(self.A)
        b_weight, a_weight = scoring.weights
        left, right, row, column = (
            None if each is None else each.to(device)
            for each in (scoring.left, scoring.right, scoring.row, scoring.column)
        )
        names = kernel.arg_names[: len(arrays)]
        depths = 0
        if left is not None and right is not None:
            left, right, depths = padded_factors(left, right, self.depth)
        with device_of(self.A):
            kernel[grid or self.grid](
                **dict(zip(names, arrays, strict=True)), m=self.A.m, units=self.A.n // unit,
                strip=self.strip, left=left, right=right, b_weight=b_weight, a_weight=a_weight,
                row=row, column=column, UNIT=unit, BASE=int(scoring.base), ROWS=self.rows,
                COLUMNS=self.columns, DEPTH=self.depth, DEPTHS=depths,
                PRECISION="tf32x3" if has_nvidia() else "ieee", num_warps=self.warps, num_stages=2,
                enable_fp_fusion=False, **self._registers(), **arguments,
            )  # fmt: skip

    def _registers(self) -> dict[str, int]:
        """The bound on a thread's registers where B is made: three programs then run at once."""
        bounded = self.scoring.base != Base.MAGNITUDE and has_nvidia()
        return {"maxnreg": LOW_RANK_REGISTERS} if bounded else {}
