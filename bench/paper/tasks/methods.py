"""The ways of pruning in one shot that the tasks compare."""

from dataclasses import dataclass

import torch
from spectral_kernels import LawName
from torch import nn

import spectral_engine as se
from bench.recipes import METHODS, REFITS

LAWS: tuple[LawName, ...] = (
    "l1",
    "l2",
    "hybrid",
    "row-l1",
    "bernstein",
    "am07",
    "trimmed-l2",
    "quantised",
)


@dataclass(frozen=True)
class Setting:
    """A method by its name; "random" keeps entries regardless of what they are.

    law, rescale, mixture: None for the method's own.
    """

    method: str
    law: LawName | None = None
    rescale: bool | None = None
    mixture: float | None = None
    refit: str | None = None

    @property
    def label(self) -> str:
        """How tables and plots call it."""
        rescaled = {None: "", True: "rescaled", False: "not rescaled"}[self.rescale]
        mixture = "" if self.mixture is None else f"unmixed{'' if self.law else ' threshold'}"
        parts = (self.method, mixture, self.law, rescaled, self.refit and f"+ {self.refit}")
        return " ".join(part for part in parts if part)

    @property
    def recipe(self) -> se.Recipe:
        """As `prune` takes it, the sparsity apart; there is none for "random"."""
        own = {"law": self.law, "rescale": self.rescale, "mixture": self.mixture}
        given = {name: value for name, value in own.items() if value is not None}
        refit = None if self.refit is None else REFITS[self.refit]()
        return se.Recipe(METHODS[self.method](**given), refit=refit)


PRINCIPAL = [
    Setting("principal", law, rescale, 0.0) for law in LAWS[:2] for rescale in (False, True)
]
PLAIN = [
    Setting("magnitude"), Setting("random"),
    *(Setting("randomized", law) for law in LAWS),
    Setting("principal"), Setting("principal", mixture=0.0), *PRINCIPAL, Setting("aligned"),
]  # fmt: skip
REFITTED = [
    Setting("magnitude"), Setting("randomized", "l1"), Setting("randomized", "l1", False),
    Setting("principal"), Setting("principal", "l1", False, 0.0), Setting("aligned"),
]  # fmt: skip
#: Refits that need no calibration.
DATA_FREE = [name for name, refit in REFITS.items() if not refit.needs_inputs]
SETTINGS = [
    *PLAIN,
    *(Setting(**vars(one) | {"refit": refit}) for one in REFITTED for refit in DATA_FREE),
]
DRAWN = [Setting("random"), Setting("randomized", "l1"), Setting("randomized", "l2"), PRINCIPAL[0]]
#: One of each kind, for thinned networks.
FEW = [
    *PLAIN[:4], Setting("randomized", "trimmed-l2"), Setting("randomized", "l1", False),
    Setting("principal"), *PRINCIPAL[:2], Setting("aligned"),
    Setting("magnitude", refit="spectral"), Setting("principal", refit="spectral"),
]  # fmt: skip
FEW_DRAWN = [DRAWN[1], DRAWN[3]]


def pruned(model: nn.Module, setting: Setting, sparsity: float, seed: int) -> list[str]:
    """Prune in place; the names of the weights pruned."""
    if setting.method == "random":
        return random(model, sparsity, seed)
    return by_prune(model, setting, sparsity, seed)


def by_prune(
    model: nn.Module, setting: Setting, sparsity: float, seed: int, ignore: list[str] | None = None
) -> list[str]:
    """As `pruned`, but not for "random". ignore: names of weights to leave alone, of `prune`."""
    report = se.prune(
        model, setting.recipe, sparsity, ignore=ignore, seed=seed, masks=False, progress=False
    )
    return list(dict.fromkeys(layer.name.partition("[")[0] for layer in report.layers))


def random(model: nn.Module, sparsity: float, seed: int) -> list[str]:
    """As many zeros as asked for in every weight, anywhere."""
    generator = torch.Generator().manual_seed(seed)
    names = [name for name, weight in model.named_parameters() if weight.ndim >= 2]
    with torch.no_grad():
        for name in names:
            weight = model.get_parameter(name)
            order = torch.randperm(weight.numel(), generator=generator)
            dropped = torch.zeros(weight.numel(), dtype=torch.bool)
            dropped[order[: round(sparsity * weight.numel())]] = True
            weight.masked_fill_(dropped.view(weight.shape).to(weight.device), 0.0)
    return names
