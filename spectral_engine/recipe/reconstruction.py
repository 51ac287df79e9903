"""How a pruned model is fitted to the dense one; `reconstruct` does it."""

from dataclasses import dataclass, field

from spectral_engine._util.checks import integer, number
from spectral_engine.recipe.value import Value


@dataclass(frozen=True, repr=False)
class Reconstruction(Value):
    """After pruning, fit each block's kept weights, biases and norms to what the dense block gives.

    Then, if asked, the model as a whole, to what the dense model answers. `prune` does it, of a
    model that is given batches; schedules, which train anyway, do not.

    Args:
        steps: of Adam for each block, a batch each; 0 leaves blocks as they are.
        rate: the first step size, as a share of each parameter's root mean square; it falls to 0
            along a half cosine.
        whole: steps for the whole model, a batch each; 0 for none. It holds five times the model.
        whole_rate: the first step size of these.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.

    Example:
        >>> import spectral_engine as se
        >>> se.Recipe(se.Magnitude(), reconstruction=se.Reconstruction(steps=32))
        Recipe(Magnitude(), reconstruction=Reconstruction(steps=32))
    """

    steps: int = field(default=64, kw_only=True)
    rate: float = field(default=0.01, kw_only=True)
    whole: int = field(default=0, kw_only=True)
    whole_rate: float = field(default=0.0005, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", integer("steps", self.steps, least=0))
        object.__setattr__(self, "rate", number("rate", self.rate, above=0.0, most=1.0))
        object.__setattr__(self, "whole", integer("whole", self.whole, least=0))
        rate = number("whole_rate", self.whole_rate, above=0.0, most=1.0)
        object.__setattr__(self, "whole_rate", rate)
