"""Recipe "auto" where there is no calibration: what errs least on simulated inputs.

Which recipe serves a network without data differs from network to network, and a wrong guess loses
it. So several are tried: magnitude, the spectral budget with its refit, and fits to what the layers
see of simulated inputs. Each is judged by the error of the whole model's outputs on other simulated
inputs; nothing is kept that errs more than magnitude.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from spectral_engine.calibration.input_moments import InputMoments, calibrate
from spectral_engine.datafree.simulate import Simulated, output_error, outputs, simulate
from spectral_engine.layers.find import Layer
from spectral_engine.pruning.report import PruneReport
from spectral_engine.recipe.budgets import ERK, Budget, Spectral, Uniform
from spectral_engine.recipe.methods import Magnitude
from spectral_engine.recipe.recipe import Recipe
from spectral_engine.recipe.refits import ALPS, LeastSquares, SpectralRefit

#: Prunes the model in place by a recipe.
Attempt = Callable[[Recipe, InputMoments | None], PruneReport]
MAGNITUDE = Recipe(Magnitude())
SPECTRAL = Recipe(Magnitude(), budget=Spectral(), refit=SpectralRefit())
#: Above this error of the outputs little is left of them, and which of two errs less says nothing:
#: magnitude is kept.
LIMIT = 0.8
#: Budgets under which a fit is tried; of a large model only the first.
BUDGETS: tuple[Budget, ...] = (Uniform(group="row"), Spectral(), ERK(group="row"))
#: Up to so many multiplications that a step of least squares has, all recipes are tried; and ALPS
#: with the best budget, up to so many that its eigenvectors take.
EVERY_BUDGET, EIGENVECTORS = 3e10, 4e10


@dataclass
class Choice:
    """What was found best, with the weights that it gives.

    recipe: as it was carried out. report: of it. values: of each layer. note: what else was tried,
    on what inputs, and how it did; it belongs into the report.
    """

    recipe: Recipe
    report: PruneReport
    values: list[torch.Tensor]
    note: str


@dataclass
class _Trial:
    """Attempts on one model, which is brought back after each."""

    model: nn.Module
    layers: Sequence[Layer]
    attempt: Attempt
    simulated: Simulated | None
    dense: torch.Tensor | None
    kept: list[torch.Tensor] = field(init=False)
    errors: dict[str, float] = field(init=False, default_factory=dict)
    best: Choice | None = field(init=False, default=None)
    least: float = field(init=False, default=math.inf)

    def __post_init__(self) -> None:
        self.kept = self.values()

    def values(self) -> list[torch.Tensor]:
        return [layer.weight.clone() for layer in self.layers]

    def restore(self) -> None:
        for layer, values in zip(self.layers, self.kept, strict=True):
            layer.weight.copy_(values)

    def run(self, label: str, recipe: Recipe, inputs: InputMoments | None = None) -> float:
        """The error of a recipe; it is remembered if it is the least so far."""
        try:
            report = self.attempt(recipe, inputs)
            error = math.inf
            if self.dense is not None and self.simulated is not None:
                pruned = outputs(self.model, self.simulated.apart)
                error = output_error(self.dense, pruned)
            self.errors[label] = error
            if self.best is None or (error < self.least and error <= LIMIT):
                self.least = error
                self.best = Choice(recipe, report, self.values(), "")
        finally:
            self.restore()
        return error


def best_without_data(
    model: nn.Module, layers: Sequence[Layer], attempt: Attempt, sparsity: float | None,
    targets: Sequence[str] | None, ignore: Sequence[str] | None, seed: int,
) -> Choice:  # fmt: skip
    """The recipe whose outputs are nearest to the dense model's on simulated inputs.

    Args:
        model: as it was afterwards. layers: those that will be pruned.
        attempt: prunes them in place.
        sparsity: of the recipes; None for their default.
        targets, ignore, seed: see `prune`.

    Returns:
        Magnitude where no inputs can be simulated, or nothing errs less.
    """
    simulated, inputs, reason = None, None, ""
    try:
        simulated = simulate(model, seed=seed)
        inputs = calibrate(model, simulated.batches, targets=targets, ignore=ignore)
        dense = outputs(model, simulated.apart)
    except (ValueError, RuntimeError) as error:  # of the model, or of the memory that it takes
        simulated, dense, reason = None, None, str(error)
    trial = _Trial(model, layers, attempt, simulated, dense)
    trial.run("magnitude", MAGNITUDE.at(sparsity))
    if simulated is not None and inputs is not None and trial.least < math.inf:
        _try_others(trial, inputs, sparsity)
    if trial.best is None:
        raise RuntimeError("expected an attempt to have been made")
    trial.best.note = _note(trial, reason)
    return trial.best


def _try_others(trial: _Trial, inputs: InputMoments, sparsity: float | None) -> None:
    """Every other recipe that the size of the layers allows."""
    products, cubes = _work(trial.layers)
    small = products <= EVERY_BUDGET
    if small:
        _attempt(trial, "spectral", SPECTRAL.at(sparsity), None)
    budgets = BUDGETS if small else BUDGETS[:1]
    found: dict[Budget, float] = {}
    for budget in budgets:
        recipe = Recipe(Magnitude(), budget=budget, refit=LeastSquares(), fallback=MAGNITUDE)
        label = f"least squares ({budget.name})"
        found[budget] = _attempt(trial, label, recipe.at(sparsity), inputs)
    if small and cubes <= EIGENVECTORS:
        best = min(found, key=lambda budget: found[budget])
        recipe = Recipe(Magnitude(), budget=best, refit=ALPS(), fallback=MAGNITUDE)
        _attempt(trial, f"ALPS ({best.name})", recipe.at(sparsity), inputs)


def _attempt(trial: _Trial, label: str, recipe: Recipe, inputs: InputMoments | None) -> float:
    """The error of a recipe; infinite where it cannot be carried out, as at a budget's floor."""
    try:
        return trial.run(label, recipe, inputs)
    except ValueError:
        return math.inf


def _work(layers: Sequence[Layer]) -> tuple[float, float]:
    """Sums over matrices (m, n) of m n^2 and of n^3."""
    shapes = [layer.matrices().shape for layer in layers]
    products = math.fsum(math.prod(shape) * shape[-1] for shape in shapes)
    cubes = math.fsum(math.prod(shape[:-2]) * float(shape[-1]) ** 3 for shape in shapes)
    return products, cubes


def _note(trial: _Trial, reason: str) -> str:
    if trial.simulated is None:
        return f"auto without calibration, by magnitude: {reason}"
    tried = ", ".join(f"{label} {error:.3g}" for label, error in trial.errors.items())
    return f"auto without calibration, judged on {trial.simulated.said}; output error: {tried}"
