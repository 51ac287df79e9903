"""What a profile is made of: cases, and a row of measurements for each."""

from dataclasses import asdict, dataclass
from typing import Any

import spectral_kernels
import torch

from spectral_engine._util.checks import one_of
from spectral_engine.recipe.methods import METHODS, Aligned, Method, Principal

DTYPES = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True)
class ProfileCase:
    """What is run: one method on one synthetic weight.

    shape: of the weight; dtype: its name, one of `DTYPES`
    method: by its name in `recipe.methods.METHODS`
    sparsity: fraction of zeros
    rank: of the method's low rank; None for its own default
    label: names a layer of a model
    """

    shape: tuple[int, ...]
    dtype: str
    method: str
    sparsity: float
    rank: int | None = None
    label: str = ""


@dataclass(frozen=True)
class Measurement:
    """What was measured of one case.

    rank: of the low rank; None where the method has none
    seconds: median of a call, without its truncated SVD; svd_seconds: median of that SVD
    copy_seconds: median of a copy of the same array
    calls: how many were timed; total_seconds: the time of all of them, with SVDs
    bytes, operations: see `PASSES` and `INSTRUCTIONS`; products and sums of the low rank included
    share: of the copy's bandwidth
    peak_bytes: memory beyond what was there before the call; None where the system does not say
    """

    case: ProfileCase
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
    def name(self) -> str:
        """The layer, or the shape."""
        return self.case.label or "x".join(map(str, self.case.shape))

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
    """The measurements of one run, and the two ceilings of the roofline.

    device: its name; versions: of the packages that the time depends on
    rows: a measurement for each case
    copy_bytes_per_s: the fastest copy of any row
    products_per_s: floating-point operations a second of a large matrix product
    model: its name, None for a sweep
    resident: how much of a model was in memory at a time, "whole" or "block"; None for a sweep
    """

    device: str
    versions: dict[str, str]
    rows: list[Measurement]
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


def check_case(case: ProfileCase) -> None:
    """Refuse a case that cannot be run.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.
    """
    method_of(case)
    one_of("dtype", case.dtype, DTYPES)
    if len(case.shape) < 2 or min(case.shape) < 1:
        raise ValueError(f"shape: expected two or more sizes of at least 1; got {case.shape}")
    spectral_kernels.entries_to_keep(1, case.sparsity)
    if case.rank is not None:
        smaller = min(case.shape[0], torch.Size(case.shape[1:]).numel())
        if not 1 <= case.rank <= smaller:
            raise ValueError(f"rank: expected 1 to {smaller} for {case.shape}; got {case.rank}")


def method_of(case: ProfileCase) -> Method:
    """The method of its name, with its rank.

    Raises:
        ValueError: no such method.
    """
    kind = METHODS[one_of("method", case.method, METHODS)]
    return kind(rank=case.rank) if kind in (Principal, Aligned) else kind()


def nbytes(case: ProfileCase) -> int:
    """Bytes of its array."""
    dtype: torch.dtype = getattr(torch, case.dtype)
    return int(torch.Size(case.shape).numel()) * dtype.itemsize
