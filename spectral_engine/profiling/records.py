"""What a profile is made of: cases, and a row of measurements for each."""

from dataclasses import asdict, dataclass
from typing import Any

import spectral_kernels
import torch

from spectral_engine.recipe.methods import METHODS, Aligned, Method, Principal

DTYPES = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True)
class Case:
    """What is run; rank is None for the method's own, `label` names a layer of a model."""

    shape: tuple[int, ...]
    dtype: str
    method: str
    sparsity: float
    rank: int | None = None
    label: str = ""


@dataclass(frozen=True)
class Row:
    """A case, measured.

    seconds: median of a call, without the truncated SVD, whose time is svd_seconds; copy_seconds:
    median of a copy of the same array. calls, total_seconds: how many were timed, and all of their
    time with SVDs. bytes, operations: see `PASSES` and `INSTRUCTIONS`, products and sums of the low
    rank included. share: of the copy's bandwidth. peak_bytes: of memory beyond what was there
    before the call, None where the system does not say.
    """

    case: Case
    rank: int | None
    seconds: float
    svd_seconds: float
    copy_seconds: float
    calls: int
    total_seconds: float
    bytes: int
    operations: int
    share: float
    peak_bytes: int | None

    @property
    def gb_per_s(self) -> float:
        """Bytes over seconds, in 10^9 a second."""
        return self.bytes / self.seconds / 1e9

    def to_dict(self) -> dict[str, Any]:
        """Plain values, flat."""
        row = asdict(self)
        return {**row.pop("case"), **row, "gb_per_s": self.gb_per_s}


@dataclass(frozen=True)
class Profile:
    """Rows of one run, and the two ceilings of the roofline.

    copy_bytes_per_s: the fastest copy of any row; products_per_s: floating-point operations a
    second of a large matrix product. resident: "whole" or "block", what of a model was in memory
    at a time; None for a sweep.
    """

    device: str
    versions: dict[str, str]
    rows: list[Row]
    copy_bytes_per_s: float
    products_per_s: float
    model: str | None = None
    resident: str | None = None

    @property
    def total_seconds(self) -> float:
        """All timed calls together, with their SVDs."""
        return sum(row.total_seconds for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "device": self.device,
            "versions": self.versions,
            "model": self.model,
            "resident": self.resident,
            "total_seconds": self.total_seconds,
            "copy_bytes_per_s": self.copy_bytes_per_s,
            "products_per_s": self.products_per_s,
            "rows": [row.to_dict() for row in self.rows],
        }


def check_case(case: Case) -> None:
    """Refuse a case that cannot be run: ValueError names the argument."""
    method_of(case)
    if case.dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}; got {case.dtype!r}")
    if len(case.shape) < 2 or min(case.shape) < 1:
        raise ValueError(f"shape: expected two or more sizes of at least 1; got {case.shape}")
    spectral_kernels.entries_to_keep(1, case.sparsity)
    if case.rank is not None:
        smaller = min(case.shape[0], torch.Size(case.shape[1:]).numel())
        if not 1 <= case.rank <= smaller:
            raise ValueError(f"rank: expected 1 to {smaller} for {case.shape}; got {case.rank}")


def method_of(case: Case) -> Method:
    """The method of its name, with its rank.

    Raises:
        ValueError: no such method.
    """
    if case.method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}; got {case.method!r}")
    kind = METHODS[case.method]
    return kind(rank=case.rank) if kind in (Principal, Aligned) else kind()


def nbytes(case: Case) -> int:
    """Bytes of its array."""
    dtype: torch.dtype = getattr(torch, case.dtype)
    return int(torch.Size(case.shape).numel()) * dtype.itemsize
