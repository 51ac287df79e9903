"""Head to head on equal terms: every method has the same network, data, epochs and sparsity.

Each run trains for the `epochs` of the dense recipe and for `RETRAIN` more. Those that prune a
trained network do so in between; those that prune at initialisation train all epochs pruned; the
lottery ticket goes back to early weights in between.

ticket: magnitude, then the weights after `EARLY` epochs again (Frankle et al., arXiv 1912.05671).
wanda and sparsegpt: calibrated on training images (arXiv 2306.11695, 2301.00774). Those at
initialisation stand in `at_start`.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

import spectral_engine as se
from bench.paper.reporting.numbers import distinct, values
from bench.paper.reporting.output import Result, panels, style
from bench.paper.reporting.statistics import mean_interval
from bench.paper.runs.at_start import AT_START, anything, at_start, chosen
from bench.paper.runs.dense import build, tested, trained
from bench.paper.runs.jobs import Settings, kept, run_all, say
from bench.paper.training.loop import Training
from bench.tables import Table
from bench.tidy import Row, as_written, records

SPARSITIES = (0.8, 0.9, 0.95, 0.98)
RETRAIN, EARLY = 6, 1
#: When accuracy is measured: right after pruning, and at the end.
PARTS = ("pruned", "retrained")
#: Images in the calibration of a method.
SAMPLES = 1024
#: Those that prune a trained network by `prune`.
TRAINED = {
    "magnitude": se.Recipe(se.Magnitude()),
    "magnitude, global": se.Recipe(se.Magnitude(), budget=se.Global()),
    "magnitude, erk": se.Recipe(se.Magnitude(), budget=se.ERK()),
    "randomized l1": se.Recipe(se.Randomized()),
    "principal": se.Recipe(se.Principal()),
    "aligned": se.Recipe(se.Aligned()),
    "aligned + spectral": se.Recipe(se.Aligned(), refit=se.SpectralRefit()),
    "wanda": se.Recipe(se.Magnitude(), budget=se.Uniform(group="row"), calibrated=True),
    "wanda + least squares": se.Recipe(
        se.Magnitude(), budget=se.Uniform(group="row"), refit=se.LeastSquares()
    ),
    "sparsegpt": se.Recipe(se.Magnitude(), refit=se.SparseGPT()),
}
METHODS = (*TRAINED, "random", "ticket", *AT_START)


def run(settings: Settings) -> Result:
    """Every method at every sparsity and seed."""
    names = ["magnitude", "ticket", "synflow"] if settings.quick else METHODS
    sparsities = SPARSITIES[:1] if settings.quick else SPARSITIES
    run_all(settings, [partial(prepared, settings, seed) for seed in settings.runs])
    cases = [
        (s, name, sparsity) for s in settings.runs for name in names for sparsity in sparsities
    ]
    found = run_all(settings, [partial(one, settings, *case) for case in cases])
    rows = [
        {"seed": seed, "method": name, "requested": sparsity, **result}
        for (seed, name, sparsity), result in zip(cases, found, strict=True)
    ]
    dense = [float(trained(settings, seed).test) for seed in settings.runs]
    longer = run_all(settings, [partial(control, settings, seed) for seed in settings.runs])
    told = as_written(numbers(rows, dense, longer))
    return Result("headtohead", settings, told, tables(told), {"": figure(settings, rows)})


def prepared(settings: Settings, seed: int) -> None:
    """The dense network, in the cache."""
    trained(settings, seed)


def control(settings: Settings, seed: int) -> float:
    """The dense network, trained on for as long as the others."""

    def measure() -> float:
        return train(settings, trained(settings, seed).model, seed, "control", [later(settings)])

    return float(kept(settings, "control", measure, settings.recipe, seed, later(settings)))


def one(settings: Settings, seed: int, name: str, sparsity: float) -> dict[str, Any]:
    """Test accuracy right after pruning and at the end."""

    def measure() -> dict[str, Any]:
        model, segments = build(settings, seed), [settings.recipe, later(settings)]
        if name == "ticket":
            return ticket(settings, model, seed, sparsity)
        if name in AT_START:
            at_start(name, settings, model, seed, sparsity)
        else:
            model, segments = trained(settings, seed).model, segments[1:]
            after_training(name, settings, model, seed, sparsity)
        pruned = tested(settings, model)
        what = f"{name} {sparsity:.0%}"
        return {"pruned": pruned, "retrained": train(settings, model, seed, what, segments)}

    return dict(kept(settings, "headtohead", measure, settings.recipe, later(settings), seed, name,
                     TRAINED.get(name), sparsity))  # fmt: skip


def after_training(
    name: str, settings: Settings, model: nn.Module, seed: int, sparsity: float
) -> None:
    """Prune a trained network in place, with masks."""
    if name == "random":
        se.apply_masks(model, chosen(model, sparsity, seed, anything, alone=True))
        return
    recipe, calibration = TRAINED[name], None
    if recipe.needs_inputs:
        images = settings.images().train.images[:SAMPLES]
        calibration = list(torch.split(settings.chosen.prepare(images), 256))
    se.prune(model, recipe, sparsity, calibration=calibration, seed=seed, progress=False)


def ticket(settings: Settings, model: nn.Module, seed: int, sparsity: float) -> dict[str, Any]:
    """Train, prune by magnitude, go back to early weights, train again."""
    recipe = settings.recipe
    early = min(EARLY, recipe.epochs)
    pruner = se.Pruner(model, se.OneShot(sparsity, start=recipe.epochs), rewind=early, leading=0)
    model.to(settings.device)
    reached = Reached()

    def before_epoch(epoch: int) -> None:
        if pruner.step() is not None:
            reached.accuracy = tested(settings, model)

    end = train(
        settings, model, seed, f"ticket {sparsity:.0%}", [recipe, later(settings)],
        before_epoch=before_epoch, followers={"pruner": pruner, "reached": reached},
    )  # fmt: skip
    return {"pruned": reached.accuracy, "retrained": end}


class Reached:
    """The accuracy right after the pruning, saved with the training."""

    accuracy = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The accuracy so far."""
        return {"accuracy": self.accuracy}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.accuracy = state["accuracy"]


def later(settings: Settings) -> Any:
    """The recipe of the retraining."""
    return replace(settings.recipe, epochs=1 if settings.quick else RETRAIN, warmup=0.0)


def train(
    settings: Settings, model: nn.Module, seed: int, what: str, segments: list[Any], **more: Any
) -> float:
    """Train, saving after each epoch; returns the test accuracy."""
    # The folder's name tells what was trained before too: the segments may be the retraining's.
    begun = (settings.recipe, TRAINED.get(what.rpartition(" ")[0]))
    folder = settings.folder("headtohead", *begun, seed, what, segments)
    Training(
        model=model,
        data=settings.images(),
        prepare=settings.chosen.prepare,
        segments=segments,
        seed=seed if len(segments) > 1 else 1000 + seed,
        path=folder / "run.safetensors",
        device=settings.device,
        progress=say(settings, seed, what),
        **more,
    ).run()
    return tested(settings, model)


def numbers(rows: list[dict[str, Any]], dense: list[float], longer: list[float]) -> list[Row]:
    """Test accuracies: of each method pruned and retrained, dense, and dense trained as long."""
    found = [
        Row("", seed, "", None, metric, value)
        for metric, accuracies in (("dense", dense), ("control", longer))
        for seed, value in enumerate(accuracies)
    ]
    return found + [
        Row("", row["seed"], row["method"], row["requested"], part, row[part])
        for row in rows
        for part in PARTS
    ]


def tables(rows: list[Row]) -> list[Table]:
    """One right after pruning and one at the end: a row a method, a column a sparsity."""
    found, shown = records(rows), []
    dense, longer = (mean_interval(values(found, name)) for name in ("dense", "control"))
    sparsities = sorted(distinct(found, "sparsity", PARTS[0]))
    for part in PARTS:
        table = Table(
            f"Test accuracy, %, {part}; dense {dense.show(100, 2)}, trained as long "
            f"{longer.show(100, 2)}",
            ("method", *(f"{sparsity:.0%}" for sparsity in sparsities)),
        )
        for name in distinct(found, "setting", part):
            cells = (values(found, part, setting=name, sparsity=at) for at in sparsities)
            table.rows.append((name, *(mean_interval(cell).show(100, 2) for cell in cells)))
        shown.append(table)
    return shown


def figure(settings: Settings, rows: list[dict[str, Any]]) -> Any:
    """Accuracy against sparsity, right after pruning and at the end."""
    drawn, axes = panels(f"Head to head, {settings.label}", 2)
    for axis, part in zip(axes, PARTS, strict=True):
        for index, name in enumerate(dict.fromkeys(row["method"] for row in rows)):
            points: dict[float, list[float]] = {}
            for row in rows:
                if row["method"] == name:
                    points.setdefault(row["requested"], []).append(row[part])
            means = [100 * sum(found) / len(found) for found in points.values()]
            axis.plot([100 * at for at in points], means, **style(index), label=name)
        axis.set(title=part, xlabel="sparsity (%)", ylabel="test accuracy (%)")
    drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=7)
    return drawn
