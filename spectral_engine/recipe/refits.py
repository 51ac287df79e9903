"""The refits: how the kept entries are adjusted; `matrix/refit.py` has the mathematics.

| refit          | needs inputs | adjusts                                                          |
|----------------|--------------|------------------------------------------------------------------|
| Scale          | no           | nothing but one scalar, which restores sigma_1                   |
| SpectralRefit  | no           | to the leading singular subspaces of the dense matrix            |
| LeastSquares   | yes          | to the dense outputs                                             |
| SparseGPT      | yes          | to the dense outputs, column after column; may choose the mask   |
| ALPS           | yes          | to the dense outputs, on a mask found by splitting (ADMM)        |
| BiasCorrection | yes          | nothing; only the bias                                           |

A refit that may choose the mask does so where the method is `Magnitude`; elsewhere it adjusts what
the method keeps. With `bias_correction` each layer's bias also changes so that its mean output
stays, and scores and outputs are then weighed by deviations from the mean input.
"""

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from spectral_engine._util.checks import boolean
from spectral_engine.recipe.low_rank import LowRank
from spectral_engine.recipe.value import Value


class Workspace(NamedTuple):
    """The memory that a refit works in: matrices beside the moments, and beside the weight.

    copies: of the size of the moments, (n, n). weights: of the size of the weight, (m, n); the
    result is one of them.
    """

    copies: int
    weights: int


#: Without a refit: the moments may be copied, to be centred, and there is a result.
NO_REFIT = Workspace(copies=1, weights=1)
#: What two factors beside the sparse part take more: the root of the moments, in float64 and in the
#: weight's precision, and the remainders of a trial and of the best one yet.
FACTORS = Workspace(copies=4, weights=8)


@dataclass(frozen=True, kw_only=True, repr=False)
class Refit(Value):
    """What the refits have in common; use one of its subclasses.

    Args:
        bias_correction: also change biases so that each layer's mean output stays; needs
            calibration inputs.
    """

    name: ClassVar[str]
    needs_inputs: ClassVar[bool] = False
    chooses_mask: ClassVar[bool] = False
    workspace: ClassVar[Workspace]
    bias_correction: bool = False

    def __post_init__(self) -> None:
        boolean("bias_correction", self.bias_correction)


@dataclass(frozen=True, kw_only=True, repr=False)
class Scale(Refit):
    """Multiply what is kept by the scalar that restores the largest singular value."""

    name: ClassVar[str] = "scale"
    workspace: ClassVar[Workspace] = Workspace(copies=1, weights=3)


@dataclass(frozen=True, kw_only=True, repr=False)
class SpectralRefit(Refit):
    """Fit what is kept to the leading singular subspaces of the dense matrix, without data."""

    name: ClassVar[str] = "spectral"
    workspace: ClassVar[Workspace] = Workspace(copies=1, weights=18)


@dataclass(frozen=True, kw_only=True, repr=False)
class LeastSquares(Refit):
    """Fit what is kept to the dense layer's outputs over the calibration inputs."""

    name: ClassVar[str] = "least-squares"
    needs_inputs: ClassVar[bool] = True
    workspace: ClassVar[Workspace] = Workspace(copies=1, weights=4)


@dataclass(frozen=True, kw_only=True, repr=False)
class SparseGPT(Refit):
    """Prune column after column, and let later columns make up for it (arXiv 2301.00774)."""

    name: ClassVar[str] = "sparsegpt"
    needs_inputs: ClassVar[bool] = True
    chooses_mask: ClassVar[bool] = True
    workspace: ClassVar[Workspace] = Workspace(copies=3, weights=7)


@dataclass(frozen=True, kw_only=True, repr=False)
class ALPS(Refit):
    """Find the mask by ADMM on the outputs' error, then fit by least squares (arXiv 2406.07831)."""

    name: ClassVar[str] = "alps"
    needs_inputs: ClassVar[bool] = True
    chooses_mask: ClassVar[bool] = True
    workspace: ClassVar[Workspace] = Workspace(copies=4, weights=8)


@dataclass(frozen=True, kw_only=True, repr=False)
class BiasCorrection(Refit):
    """Leave what is kept as it is, and correct the bias alone."""

    name: ClassVar[str] = "bias-correction"
    needs_inputs: ClassVar[bool] = True
    workspace: ClassVar[Workspace] = NO_REFIT
    bias_correction: bool = field(default=True, init=False)


REFITS: dict[str, type[Refit]] = {
    cls.name: cls for cls in (Scale, SpectralRefit, LeastSquares, SparseGPT, ALPS, BiasCorrection)
}


def workspace_of(refit: Refit | None, low_rank: LowRank | None = None) -> Workspace:
    """The memory that a refit, or none, works in; with factors beside it more."""
    copies, weights = NO_REFIT if refit is None else refit.workspace
    if low_rank is None:
        return Workspace(copies, weights)
    return Workspace(copies + FACTORS.copies, weights + FACTORS.weights)
