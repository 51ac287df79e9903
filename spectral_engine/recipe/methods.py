"""The methods: what makes an entry worth keeping, and whether it is chosen or drawn.

| method     | score              | keeps                                                    |
|------------|--------------------|----------------------------------------------------------|
| Magnitude  | |A|                | the largest                                              |
| Randomized | |A|                | draws with p = min(1, c g(score)); A / p if it rescales  |
| Principal  | |B| mixed with |A| | the largest, or draws by a law                           |
| Aligned    | max(A * B, 0)      | the largest, or draws by a law                           |

B = U_k S_k V_k^T is the truncated SVD of A. Yao, Yu, Koutis (arXiv 2307.08982) call the first three
thresholding, randomized and principal-component sparsification; theirs draws with p ~ |B| or B^2,
which is `Principal(mixture=0.0, law="l1")` or "l2".

The default of `Principal`, with B at half the full rank and

    s^2 = (1 - t) B^2 / ||B||_F^2 + t A^2 / ||A||_F^2,    t = 1/2,

measured best of 45 settings (bench/principal_default.py; bench/results) over sparsities 50 to 95 %:
mean accuracy of the demo network .501 and mean spectral error of twelve MiniLM matrices .429.
Drawing by "l2" with the same mixture is as accurate (.503) with more error (.497); without the
mixture .480 and .445; rescaled, .438 at best. `Magnitude` has .537 and .429: on these networks the
low rank does not pay for itself, except in the singular values (.230 against .238).
"""

from dataclasses import dataclass, field
from typing import ClassVar

from spectral_kernels import LAW_NAMES, LawName, ScoreName, named_law

from spectral_engine._util.checks import boolean, integer, number, one_of
from spectral_engine.recipe.value import Value


class Method(Value):
    """What the methods have in common; use one of its subclasses.

    law, law_parameter: see `spectral_kernels`; "threshold" keeps the largest scores.
    rescale: whether a drawn entry is divided by its probability, which makes the draw unbiased.
    rank: of B, or None for half of min(m, n), and for methods without B.
    mixture: the magnitude's share t in a mixed score.
    """

    name: ClassVar[str]
    law: LawName
    law_parameter: float | None
    rescale: bool
    rank: int | None
    mixture: float

    @property
    def score(self) -> ScoreName:
        """The kernels' name of the score."""
        return "magnitude"

    @property
    def needs_low_rank(self) -> bool:
        """Whether the score is made from a truncated SVD."""
        return self.score != "magnitude"

    @property
    def draws(self) -> bool:
        """Whether entries are drawn; False where the largest are kept."""
        return self.law != "threshold"


@dataclass(frozen=True, kw_only=True, repr=False)
class Magnitude(Method):
    """Keep the entries of largest magnitude.

    It has the least ||S - A||_F at a given number of entries. With calibration inputs a score is
    |A_ij| times the root mean square of input j, which is Wanda (arXiv 2306.11695) where every row
    has the same budget.
    """

    name: ClassVar[str] = "magnitude"
    law: LawName = field(default="threshold", init=False)
    law_parameter: float | None = field(default=None, init=False)
    rescale: bool = field(default=False, init=False)
    rank: int | None = field(default=None, init=False)
    mixture: float = field(default=0.0, init=False)


@dataclass(frozen=True, kw_only=True, repr=False)
class Randomized(Method):
    """Draw entries with a probability that grows with their magnitude.

    Args:
        law: "l1" (p ~ |A|), "l2", "trimmed-l2", "hybrid", "row-l1", "bernstein", "am07" or
            "quantised"; `spectral_kernels` has their formulas and sources.
        law_parameter: alpha in [0, 1] of "hybrid" (1/2 if None), or kappa > 0 of "am07".
        rescale: divide what is kept by its probability, so that E S = A.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.
    """

    name: ClassVar[str] = "randomized"
    law: LawName = "l1"
    law_parameter: float | None = None
    rescale: bool = True
    rank: int | None = field(default=None, init=False)
    mixture: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        _check_law(self)
        if not self.draws:
            raise ValueError("law: 'threshold' draws nothing; expected another, or Magnitude()")


@dataclass(frozen=True, kw_only=True, repr=False)
class Principal(Method):
    """Score by the truncated SVD B, mixed with the magnitude.

    Args:
        rank: k of B; None for half of min(m, n). A matrix with min(m, n) under it uses that.
        mixture: the magnitude's share t in [0, 1]; 0 scores by |B| alone.
        law, law_parameter: as for `Randomized`, or "threshold" to keep the largest scores.
        rescale: as for `Randomized`; a low score times 1 / p has no bound, so not by default.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.
    """

    name: ClassVar[str] = "principal"
    rank: int | None = None
    mixture: float = 0.5
    law: LawName = "threshold"
    law_parameter: float | None = None
    rescale: bool = False

    def __post_init__(self) -> None:
        _check_rank(self)
        _check_law(self)
        object.__setattr__(self, "mixture", _share(self.mixture))

    @property
    def score(self) -> ScoreName:
        """ "mixture", or "principal" where the magnitude has no share."""
        return "mixture" if self.mixture > 0.0 else "principal"


@dataclass(frozen=True, kw_only=True, repr=False)
class Aligned(Method):
    """Score by max(A * B, 0): the first-order change of the leading singular values.

    Args:
        rank: k of B; None for half of min(m, n). A matrix with min(m, n) under it uses that.
        law, law_parameter, rescale: as for `Principal`.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.
    """

    name: ClassVar[str] = "aligned"
    rank: int | None = None
    law: LawName = "threshold"
    law_parameter: float | None = None
    rescale: bool = False
    mixture: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        _check_rank(self)
        _check_law(self)

    @property
    def score(self) -> ScoreName:
        """ "aligned"."""
        return "aligned"


METHODS: dict[str, type[Method]] = {
    cls.name: cls for cls in (Magnitude, Randomized, Principal, Aligned)
}


def _share(mixture: float) -> float:
    return number("mixture", mixture, least=0.0, most=1.0, meaning="the magnitude's share,")


def _check_rank(method: Method) -> None:
    if method.rank is not None:
        object.__setattr__(method, "rank", integer("rank", method.rank, least=1))


def _check_law(method: Method) -> None:
    one_of("law", method.law, LAW_NAMES)  # an array compares to no name
    named_law(method.law, method.law_parameter)
    if method.law_parameter is not None:
        object.__setattr__(method, "law_parameter", float(method.law_parameter))
    if boolean("rescale", method.rescale) and not method.draws:
        raise ValueError("rescale: law 'threshold' draws nothing to divide by; got True")
