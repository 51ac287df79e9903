"""The plans of iterative prune-retrain: rounds of sparsities and epochs, by network."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import spectral_engine as se
from bench.paper.runs.jobs import Settings
from bench.recipes import BUDGETS, METHODS

LADDER = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
#: For networks of which a round takes long.
SHORT_LADDER = (0.5, 0.8, 0.9, 0.95, 0.98, 0.995)
#: The share of the dense network's answers in the targets of the best plans.
SOFT = 0.9
CONTROL = "dense control"
#: The name of a plan that has a control.
BEST = "best"


@dataclass(frozen=True)
class Plan:
    """Rounds of pruning and retraining: sparsities, and the epochs of training after each.

    rate: of the retraining, falling anew in each round (rewound, as in arXiv 2003.02389).
    soft: the share of the dense network's own answers in the targets of the retraining.
    """

    name: str
    rounds: tuple[tuple[float, int], ...]
    rate: float
    decay: float
    method: str = "magnitude"
    budget: str = "uniform"
    pruned: bool = True
    soft: float = 0.0

    @property
    def recipe(self) -> se.Recipe:
        """As the pruner takes it, the sparsities apart."""
        return se.Recipe(METHODS[self.method](), budget=BUDGETS[self.budget]())

    @property
    def label(self) -> str:
        """How tables call it."""
        if not self.pruned:
            return CONTROL
        return " ".join(part for part in (self.name, self.method, self.budget) if part)


def ladder(
    epochs: int, rate: float, decay: float, method: str = "magnitude",
    sparsities: tuple[float, ...] = LADDER,
) -> Plan:  # fmt: skip
    """Every one of the sparsities, with as many epochs after each."""
    return Plan("ladder", tuple((sparsity, epochs) for sparsity in sparsities), rate, decay, method)


def best(rounds: tuple[tuple[float, int], ...], rate: float, decay: float, budget: str) -> Plan:
    """The recipe that loses least: the dense network's answers are learnt, the last round long."""
    return Plan(BEST, rounds, rate, decay, budget=budget, soft=SOFT)


#: Of each network; those of LeNets were chosen on the validation part.
PLANS: dict[str, Sequence[Plan]] = {
    "lenet-300-100": (
        ladder(3, 1e-3, 0.1),
        ladder(3, 1e-3, 0.1, "principal"),
        best(((0.6, 2), (0.8, 2), (0.9, 3), (0.95, 15)), 2e-3, 0.01, "erk"),
    ),
    "lenet-5": (
        ladder(1, 1e-3, 0.05),
        best(((0.8, 1), (0.92, 1), (0.96, 2), (0.98, 12)), 2e-3, 0.05, "global"),
    ),
    "vgg19": (ladder(3, 5e-4, 0.05, sparsities=SHORT_LADDER),),
    "vgg19-bn": (
        ladder(3, 1e-3, 0.05, sparsities=SHORT_LADDER),
        best(((0.8, 1), (0.95, 8)), 1e-3, 0.01, "erk"),
    ),
}
DEFAULT = (ladder(2, 1e-3, 0.01),)


def plans(settings: Settings) -> list[Plan]:
    """The network's plans, each best one with its control; short ones where it must be quick."""
    found: list[Plan] = []
    for plan in PLANS.get(settings.network, DEFAULT):
        used = replace(plan, rounds=((0.5, 1), (0.9, 1))) if settings.quick else plan
        found.append(used)
        if plan.name == BEST:
            found.append(replace(used, pruned=False))
    return found[-3:] if settings.quick else found
