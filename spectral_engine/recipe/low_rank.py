"""Two thin factors beside a sparse matrix: the leading directions kept, the rest made sparse.

A ~ S + L R with L (m, r) and R (r, n), as in OATS (Zhang, Papyan, arXiv 2409.13652) and 3BASiL
(Makni, Meng, Mazumder, arXiv 2603.01376), and without data too. `sparsifying/low_rank.py` has the
mathematics.
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

from spectral_engine._util.checks import integer, one_of
from spectral_engine.recipe.value import Value

#: By what an error is weighed where there are calibration inputs.
Metric = Literal["outputs", "scaled"]


@dataclass(frozen=True, repr=False)
class LowRank(Value):
    """Keep the leading directions of a weight as two thin factors beside its sparse part.

    The budget counts both: with r (m + n) entries in the factors the sparse part keeps so many
    fewer, so that a sparsity asks for the same bytes as without, where a value of either takes as
    many.

    Args:
        rank: r, the columns of the left factor. It is cut to what the budget of a layer leaves when
            the sparse part keeps at least one entry a row. None tries, layer by layer, 0, which is
            no factors, and a few more that use up to half the budget, as long as the error falls;
            the work is that of two to four prunings.
        metric: with calibration inputs, "outputs" makes the outputs' error small; "scaled", as OATS
            does, that of the weight times the root mean square of each input. Without inputs both
            are the error of the weight.
        steps: how often factors and sparse part are fitted to what the other leaves. On
            LeNet-300-100 and MiniLM 20 left up to 4 % less error than 4.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.
    """

    rank: int | None = None
    metric: Metric = field(default="outputs", kw_only=True)
    steps: int = field(default=4, kw_only=True)

    def __post_init__(self) -> None:
        if self.rank is not None:
            object.__setattr__(self, "rank", integer("rank", self.rank, least=1))
        one_of("metric", self.metric, get_args(Metric))
        object.__setattr__(self, "steps", integer("steps", self.steps, least=1))
