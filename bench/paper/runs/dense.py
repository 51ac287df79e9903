"""The dense networks that the tasks begin with: trained once a seed, their spectra recorded."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import spectral_engine as se
from bench.paper.runs.jobs import Settings, say
from bench.paper.training.loop import Recipe, Training, accuracy
from bench.paper.training.objectives import CLASSIFY, Objective
from bench.paper.training.store import remembered

#: Records of the spectra in a training.
RECORDS = 60
#: More singular values than any weight here has: all are recorded.
ALL = 4096


@dataclass
class Dense:
    """A trained network in evaluation mode, its spectra through training, and its figures."""

    model: nn.Module
    tracker: se.SpectrumTracker
    history: list[dict[str, float]]
    steps_per_epoch: int
    test: float
    folder: Path


def build(settings: Settings, seed: int) -> nn.Module:
    """A new network with the initial weights of a seed."""
    torch.manual_seed(seed)
    return settings.chosen.build(settings.width)


def trained(
    settings: Settings,
    seed: int,
    recipe: Recipe | None = None,
    model: nn.Module | None = None,
    name: str = "dense",
    objective: Objective = CLASSIFY,
) -> Dense:
    """The dense network of a seed, trained unless it is in the cache.

    model, name: given where it is not the settings' own network, or where it learns something else.
    """
    recipe = recipe or settings.recipe
    data = settings.images()
    model = build(settings, seed) if model is None else model
    steps = math.ceil(len(data.train) / recipe.batch)
    every = max(1, steps * recipe.epochs // RECORDS)
    tracker = se.SpectrumTracker(model, every, ALL)
    folder = settings.folder(name, recipe, seed)

    def before_epoch(epoch: int) -> None:
        if epoch == 0:
            tracker.start()

    training = Training(
        model=model,
        data=data,
        prepare=settings.chosen.prepare,
        segments=[recipe],
        seed=seed,
        targets=None if objective.targets is None else objective.targets(data.train),
        loss=objective.loss,
        judge=objective.judge,
        path=folder / "training.safetensors",
        device=settings.device,
        before_epoch=before_epoch,
        after_step=tracker.step,
        followers={"tracker": tracker},
        progress=say(settings, seed, name),
    ).run()
    tracker.finish()

    def tell() -> float:
        return objective.judge(model, data.test, settings.chosen.prepare, settings.device)

    test = remembered(folder / "test.json", tell)
    return Dense(model, tracker, training.history, steps, test, folder)


def evaluate(settings: Settings, model: nn.Module) -> tuple[float, float]:
    """Accuracy on the validation part and on the test part."""
    part = settings.images().validation
    validation = accuracy(model, part, settings.chosen.prepare, settings.device)
    return validation, tested(settings, model)


def tested(settings: Settings, model: nn.Module) -> float:
    """Accuracy on the test part."""
    return accuracy(model, settings.images().test, settings.chosen.prepare, settings.device)
