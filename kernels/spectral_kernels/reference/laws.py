"""The table of scores and laws: what an entry is worth, and with which probability it is kept.

A score is a float32 s >= 0, ((base * column_j) * row_i), rounded at each product. A law turns it
into a probability p = min(1, c * g(s)), where the budget solves for c. Under `THRESHOLD` nothing
is drawn: the largest scores are kept. With x = s * 2^-e, an exact power-of-two scaling that brings
the largest score into [1, 2), the shapes g that the kernels know are

    L1        x                        L2       x^2
    HYBRID    alpha x + beta x^2       MAXIMUM  max(x, beta x^2)
    TRIMMED   x^2 where x >= alpha, else 0

each product rounded to float32, without fused multiply-add. Named laws map onto these shapes; some
differ only in their row vector, and two names coincide:

- "l1": p ~ |A|. Arora, Hazan, Kale, RANDOM 2006; also the minimiser of E||S - A||_F^2 at a given
  expected count.
- "quantised": Arora-Hazan-Kale as they state it, |A| < tau becomes sign(A) tau with probability
  |A| / tau. That is "l1" with rescaling, c = 1 / tau, and it is the same code path.
- "l2": p ~ A^2. Drineas, Zouzias, arXiv 1006.0407, without their trim.
- "trimmed-l2": "l2" after entries of |A| <= eps / (m + n) are dropped, with
  eps^2 = 14 (m + n) ln((m + n) / sqrt 2) ||A||_F^2 / K (Drineas-Zouzias, rectangular form, solved
  for the error that K draws buy). The trim is rounded down to a histogram edge (3 %), and it never
  leaves fewer than K entries.
- "hybrid": p ~ alpha |A| / ||A||_1 + (1 - alpha) A^2 / ||A||_F^2; Kundu, Drineas,
  Magdon-Ismail 2017. The norms come from the budget's histogram.
- "row-l1": p ~ |A_ij| ||A_i||_1, the large-sample limit of "bernstein".
- "bernstein": p ~ rho_i |A_ij| / ||A_i||_1; Achlioptas, Karnin, Liberty, NIPS 2013, section 3,
  with rho from bisection (see `rows.bernstein_row_weights`).
- "am07": p = max(q, q^2 / tau) with q = c |A| and tau = kappa / n; Achlioptas, McSherry, JACM 2007,
  p_0 (A/b)^2 or its square root times (8 ln n)^4 / n, in terms of the smaller branch. Its constant
  kappa = (8 ln n)^4 makes tau >= 1 for every n under 7e8, where it is "l1" exactly.
"""

import enum
import math
from dataclasses import dataclass
from typing import Literal, get_args

from spectral_kernels._validation import is_number

LawName = Literal[
    "threshold", "l1", "l2", "hybrid", "row-l1", "bernstein", "am07", "trimmed-l2", "quantised"
]
ScoreName = Literal["magnitude", "principal", "aligned", "mixture"]
GroupName = Literal["tensor", "row"]
LAW_NAMES: tuple[LawName, ...] = get_args(LawName)
SCORE_NAMES: tuple[ScoreName, ...] = get_args(ScoreName)
GROUP_NAMES: tuple[GroupName, ...] = get_args(GroupName)


class Shape(enum.IntEnum):
    """The shape g of a law, as the kernels know it."""

    L1 = 0
    L2 = 1
    HYBRID = 2
    MAXIMUM = 3
    TRIMMED = 4


class Base(enum.IntEnum):
    """The base of a score; B = U_k S_k V_k^T is the truncated SVD, A is rounded to float32.

    MAGNITUDE |A|; PRINCIPAL |B|; ALIGNED max(A * B, 0), the first-order change of
    sum sigma_k^2 / 2 when an entry is removed; MIXTURE sqrt((b B)^2 + (a A)^2) with weights a, b.
    An entry with A = 0 scores 0 under every base: there is nothing to keep.
    """

    MAGNITUDE = 0
    PRINCIPAL = 1
    ALIGNED = 2
    MIXTURE = 3


BASES: dict[ScoreName, Base] = {
    "magnitude": Base.MAGNITUDE,
    "principal": Base.PRINCIPAL,
    "aligned": Base.ALIGNED,
    "mixture": Base.MIXTURE,
}


@dataclass(frozen=True)
class Law:
    """A named law: its shape, its parameter (alpha of hybrid, kappa of am07) and its row vector.

    >>> from spectral_kernels import named_law
    >>> named_law("threshold").draws, named_law("l1").draws
    (False, True)
    """

    name: LawName
    shape: Shape = Shape.L1
    parameter: float = 0.0
    row_weights: Literal["none", "l1", "bernstein"] = "none"

    @property
    def draws(self) -> bool:
        """Whether entries are drawn; False for the threshold, which keeps the largest."""
        return self.name != "threshold"

    def draws_some(self, budget: int, size: int) -> bool:
        """Whether chance decides over a group of `size` entries: not where all or none are kept."""
        return self.draws and budget not in (0, size)


def am07_constant(n: int) -> float:
    """kappa = (8 ln n)^4 of Achlioptas-McSherry, for a matrix of n columns."""
    return (8.0 * math.log(max(n, 2))) ** 4


def named_law(name: str, parameter: float | None = None) -> Law:
    """The law called `name`.

    Args:
        name: one of `LAW_NAMES`; the module's docstring has their formulas and sources.
        parameter: alpha in [0, 1] of "hybrid" (default 1/2) or kappa > 0 of "am07" (default
            (8 ln n)^4, given as 0 here). Other laws take none.

    Returns:
        The law: its shape, its parameter, and how its rows are weighted.

    Raises:
        TypeError: the parameter is not a number.
        ValueError: unknown name, a parameter out of range, or one where the law takes none.

    >>> from spectral_kernels import named_law
    >>> named_law("hybrid").parameter
    0.5
    """
    if name not in LAW_NAMES:
        raise ValueError(f"law: expected one of {', '.join(LAW_NAMES)}; got {name!r}")
    if parameter is not None:
        if name not in ("hybrid", "am07"):
            raise ValueError(f"law_parameter: law {name!r} takes none; got {parameter!r}")
        if not is_number(parameter):
            raise TypeError(f"law_parameter: expected a number; got {type(parameter).__name__}")
    if name == "hybrid":
        alpha = 0.5 if parameter is None else float(parameter)
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"law_parameter: alpha of 'hybrid' is in [0, 1]; got {parameter!r}")
        if alpha == 0.0:  # as "l2", which has room for outliers that alpha x + beta x^2 has not
            return Law("hybrid", Shape.L2)
        return Law("hybrid", Shape.HYBRID, alpha)
    if name == "am07":
        kappa = 0.0 if parameter is None else float(parameter)
        if parameter is not None and not 0.0 < kappa < math.inf:
            raise ValueError(f"law_parameter: kappa of 'am07' is positive; got {parameter!r}")
        return Law("am07", Shape.MAXIMUM, kappa)
    fixed: dict[str, Law] = {
        "threshold": Law("threshold"),
        "l1": Law("l1"),
        "quantised": Law("quantised"),
        "l2": Law("l2", Shape.L2),
        "trimmed-l2": Law("trimmed-l2", Shape.TRIMMED),
        "row-l1": Law("row-l1", row_weights="l1"),
        "bernstein": Law("bernstein", row_weights="bernstein"),
    }
    return fixed[name]
