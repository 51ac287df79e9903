"""What `sparsify` gives: the sparse array, and a report of what was done."""

import math
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from spectral_kernels import Sparse

from spectral_engine.matrix.errors import Errors, errors
from spectral_engine.recipe.recipe import Recipe


class SparsityMissed(UserWarning):
    """A draw kept another number of entries than was asked for, and chance does not explain it."""


@dataclass
class SparsifyReport:
    """What was done to one matrix, and how well it went.

    recipe: as it was carried out.
    rank: of the low rank B in the score; None where the score needs none.
    requested, sparsity: the fraction of zeros asked for, and reached. nnz, size: nonzeros, entries.
    low_rank: of two factors beside the sparse part, 0 where none are better, None without
        `LowRank`. Their entries count among `nnz`.
    c: of p = min(1, c g(s)), or the threshold on the score, which for `Aligned` is A * B times a
        power of two; nan under a pattern "N:M", where each group has its own.
    missed: whether the draw missed its budget because the scores lie too many orders of magnitude
        apart for float32; a `SparsityMissed` warning says so too. See `spectral_kernels.Sparse`.
    seconds: wall time, with the truncated SVD, and with the compilation of first use.
    """

    recipe: Recipe
    rank: int | None
    requested: float
    sparsity: float
    nnz: int
    size: int
    c: float
    seconds: float
    _pair: tuple[Any, Any] = field(repr=False)
    missed: bool = False
    low_rank: int | None = None

    @cached_property
    def errors(self) -> Errors:
        """Errors against the original, measured when first asked for.

        The report holds on to the original array for this; do not change it before.
        """
        return errors(*self._pair)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the errors."""
        numbers = (
            "rank", "requested", "sparsity", "nnz", "size", "c", "seconds", "missed", "low_rank",
        )  # fmt: skip
        return {
            "recipe": self.recipe.to_dict(),
            **{name: getattr(self, name) for name in numbers},
        }


@dataclass(frozen=True)
class Sparsified:
    """A sparsified array; `weight` has the kind, dtype, shape and device of the input.

    bias: with a refit's `bias_correction`, what to add to the layer's bias, a float64 tensor (m,);
        else None.
    factors: with `LowRank`, L (m, r) and R (r, n) of weight + L R, torch tensors in the weight's
        dtype; None where none are better.
    """

    weight: Any
    report: SparsifyReport
    bias: torch.Tensor | None = None
    factors: tuple[torch.Tensor, torch.Tensor] | None = None

    def __repr__(self) -> str:
        """The size and what is left of it; the array itself is `weight`."""
        size = "x".join(map(str, self.weight.shape))
        return f"Sparsified({size}, sparsity {self.sparsity:.4f}, nnz {self.nnz:,})"

    @property
    def mask(self) -> Any:
        """Boolean array, True where the weight is not zero; made when asked for, not stored."""
        return self.weight != 0

    @property
    def nnz(self) -> int:
        """Number of nonzeros, and of entries of the factors."""
        return self.report.nnz

    @property
    def sparsity(self) -> float:
        """Fraction of zeros; with factors one minus what is stored of a dense weight."""
        return self.report.sparsity


def report_of(
    weight: Any, sparse: Sparse, recipe: Recipe, requested: float, nnz: int, seconds: float,
    rank: int | None = None,
) -> SparsifyReport:  # fmt: skip
    """The report of what the kernels made of a weight; `nnz` counts after a refit."""
    size = math.prod(weight.shape)
    if sparse.missed:
        warnings.warn(
            f"weight of shape {tuple(weight.shape)}: {sparse.nnz} entries are kept where "
            f"{sparse.asked} were asked for: the scores lie too many orders of magnitude apart for "
            f"the law {recipe.method.law!r} in float32",
            SparsityMissed,
            stacklevel=2,
        )
    return SparsifyReport(
        recipe=recipe, rank=rank, requested=float(requested), sparsity=1.0 - nnz / size, nnz=nnz,
        size=size, c=sparse.c, seconds=seconds, missed=sparse.missed,
        _pair=(weight, sparse.weight),
    )  # fmt: skip
