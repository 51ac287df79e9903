"""The preset methods: rows of the table score x law x value, under the names people use.

| method       | score                | law       | value                |
|--------------|----------------------|-----------|----------------------|
| magnitude    | |A|                  | threshold | A                    |
| randomized   | |A|                  | l1        | A / p, unbiased      |
| principal    | |B| mixed with |A|   | threshold | A                    |
| aligned      | max(A * B, 0)        | threshold | A                    |
| auto         | |A|                  | threshold | A, see `automatic`   |

`law`, `rescale` and `mixture` override a preset's own. Yao, Yu, Koutis (arXiv 2307.08982) call the
first three thresholding, randomized and principal-component sparsification; theirs draws with
p ~ |B| or B^2, which is law "l1" or "l2" with mixture 0.

The default of "principal", with B = U_k S_k V_k^T at half the full rank and

    s^2 = (1 - t) B^2 / ||B||_F^2 + t A^2 / ||A||_F^2,    t = 1/2,

is what measured best of 45 settings (bench/principal_default.py; bench/results) over sparsities 50
to 95 %: mean accuracy of the demo network .501 and mean spectral error of twelve MiniLM matrices
.429. Drawing by "l2" with the same mixture is as accurate (.503) with more error (.497); without
the mixture .480 and .445; rescaled, .438 at best. "magnitude" has .537 and .429: on these networks
the low rank does not pay for itself, except in the singular values (.230 against .238).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from spectral_kernels import LAW_NAMES
from spectral_kernels.reference.laws import LawName, ScoreName


@dataclass(frozen=True)
class Refit:
    """Whether a refit needs calibration inputs, and whether it may choose the mask itself.

    copies, weights: how many matrices of the moments' size it works in, beside the moments, and how
        many of the weight's size, beside the weight; the result is one of them.
    """

    needs_inputs: bool = False
    own_mask: bool = False
    copies: int = 1
    weights: int = 3


#: How kept entries are adjusted, see `refit`. Those that may choose the mask do so the score
#: is the magnitude and nothing is drawn; elsewhere they adjust the method's.
REFITS: dict[str, Refit] = {
    "scale": Refit(),
    "spectral": Refit(weights=18),
    "least-squares": Refit(needs_inputs=True, weights=4),
    "sparsegpt": Refit(needs_inputs=True, own_mask=True, copies=3, weights=7),
    "admm": Refit(needs_inputs=True, own_mask=True, copies=4, weights=8),
}

#: The moments may be copied, to be centred, and there is a result.
NO_REFIT = Refit(weights=1)


@dataclass(frozen=True)
class Method:
    """How a layer is sparsified; `mixture` is the magnitude's share t of a mixed score."""

    name: str
    score: ScoreName
    law: LawName
    rescale: bool
    law_parameter: float | None = None
    mixture: float = 0.0
    refit: str | None = None

    @property
    def needs_low_rank(self) -> bool:
        """Whether the score is made from a truncated SVD."""
        return self.score != "magnitude"

    @property
    def plain(self) -> bool:
        """Whether magnitudes, a law and a budget are all there is to it."""
        return self.score == "magnitude" and self.refit is None

    @property
    def needs_inputs(self) -> bool:
        """Whether the refit needs calibration inputs."""
        return self.refit is not None and REFITS[self.refit].needs_inputs

    @property
    def refit_chooses(self) -> bool:
        """Whether the refit chooses the mask too."""
        own = self.refit is not None and REFITS[self.refit].own_mask
        return own and self.score == "magnitude" and self.law == "threshold"


PRESETS: dict[str, Method] = {
    "magnitude": Method("magnitude", "magnitude", "threshold", rescale=False),
    "randomized": Method("randomized", "magnitude", "l1", rescale=True),
    "principal": Method("principal", "mixture", "threshold", rescale=False, mixture=0.5),
    "aligned": Method("aligned", "aligned", "threshold", rescale=False),
    "auto": Method("auto", "magnitude", "threshold", rescale=False),
}


def automatic(
    method: str, calibrated: bool, refit: str | None, group: str, pattern: str | None
) -> tuple[str | None, str]:
    """Refit and group as they are, or for method "auto" those that docs/quality.md speaks for.

    With calibration inputs each row has the same sparsity, unless there is a pattern, and "admm"
    finds the mask, unless another refit is asked for. Without them "auto" is "magnitude": all else
    that gains anything without inputs was below it on some network.
    """
    if method != "auto" or not calibrated:
        return refit, group
    return refit or "admm", group if pattern is not None else "row"


def automatic_allocation(
    method: str, calibrated: bool, allocation: str | None, one_share: bool
) -> str:
    """How layers share the budget where the caller leaves it open: "erk" for a calibrated "auto".

    With admm it was ahead of "uniform" on LeNet, g2p and CREPE by up to .09, and on MiniLM at most
    .003 behind it (docs/quality.md). one_share: every layer has its sparsity from
    a pattern or an error.
    """
    if allocation is not None:
        return allocation
    return "erk" if method == "auto" and calibrated and not one_share else "uniform"


def resolve(
    method: str,
    *,
    law: str | None = None,
    law_parameter: float | None = None,
    rescale: bool | None = None,
    mixture: float | None = None,
    refit: str | None = None,
) -> Method:
    """The preset called `method` with what the caller overrides.

    A sampling law given to a preset that keeps the largest rescales only where the score is the
    magnitude: under a spectral score, E||S - A||_F^2 = sum A^2 (1/p - 1) has no bound.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.
    """
    if not isinstance(method, str) or method not in PRESETS:
        raise ValueError(f"method: expected one of {', '.join(PRESETS)}; got {method!r}")
    chosen = PRESETS[method]
    if law is not None:
        if law not in LAW_NAMES:
            raise ValueError(f"law: expected one of {', '.join(LAW_NAMES)}; got {law!r}")
        unbiased = law != "threshold" and chosen.score == "magnitude"
        chosen = replace(chosen, law=law, rescale=unbiased)
    if rescale is not None:
        if not isinstance(rescale, bool):
            raise TypeError(f"rescale: expected True, False or None; got {rescale!r}")
        if rescale and chosen.law == "threshold":
            raise ValueError("rescale: law 'threshold' draws nothing to divide by; got True")
        chosen = replace(chosen, rescale=rescale)
    if law_parameter is not None:
        _check_number(law_parameter, "law_parameter")
    if mixture is not None:
        _check_number(mixture, "mixture")
        if chosen.score not in ("principal", "mixture"):
            raise ValueError(f"mixture: only method 'principal' mixes scores; got {mixture!r}")
        if not 0.0 <= mixture <= 1.0:
            raise ValueError(f"mixture: expected the magnitude's share, in [0, 1]; got {mixture!r}")
        score: ScoreName = "mixture" if mixture > 0.0 else "principal"
        chosen = replace(chosen, score=score, mixture=float(mixture))
    if refit is not None and (not isinstance(refit, str) or refit not in REFITS):
        raise ValueError(f"refit: expected None or one of {', '.join(REFITS)}; got {refit!r}")
    return replace(chosen, law_parameter=law_parameter, refit=refit)


def _check_number(value: Any, argument: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating):
        raise TypeError(f"{argument}: expected a number; got {type(value).__name__}")
