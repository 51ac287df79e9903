"""Perplexity of a pruned language model, a setting after the other.

    python -m bench.quality.language --model FOLDER

What the dense model's layers see is gathered once, and every setting prunes a copy by it; those
that fit more than a layer run over the windows again. A run that is stopped goes on where it was.
Seconds are of processor time, of pruning alone: neither loading, nor gathering, nor measuring. The
peak is that of the whole process so far.
"""

import copy
import fnmatch
import platform
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn

import spectral_engine as se
from bench import tidy
from bench.quality.networks.language import LanguageModel, load, perplexity

RESULTS = Path(__file__).parents[1] / "results" / "language.csv"
DENSE = "dense"
PATTERNS = {"2:4": 0.5, "4:8": 0.5}
#: What is measured; "+ blocks" fits the blocks afterwards, "+ whole" trains the model as a whole.
RECIPES = {
    "magnitude": se.preset("magnitude"),
    "wanda": se.preset("wanda"),
    "sparsegpt": se.preset("sparsegpt"),
    "least-squares": se.preset("least-squares"),
    "least-squares erk": se.Recipe(budget=se.ERK(group="row"), refit=se.LeastSquares()),
    "alps by row": se.Recipe(budget=se.Uniform(group="row"), refit=se.ALPS()),
    "alps by row erk": se.Recipe(budget=se.ERK(group="row"), refit=se.ALPS()),
}
ENDS: dict[str, Callable[[int], se.Reconstruction | None]] = {
    "": lambda steps: None,
    " + blocks": lambda steps: se.Reconstruction(steps=steps),
    " + whole": lambda steps: se.Reconstruction(steps=0, whole=steps),
}


def settings() -> list[str]:
    """The labels of all settings, those that begin alike one after the other."""
    plain = [
        f"{name}{pattern}" for pattern in ("", *(f" {one}" for one in PATTERNS)) for name in RECIPES
    ]
    return [f"{label}{end}" for label in plain for end in ENDS]


def start_of(label: str) -> str:
    """A setting without what follows the pruning of its layers."""
    return label.partition(" + ")[0]


def recipe_of(label: str, sparsity: float) -> se.Recipe | None:
    """How a setting prunes, None where the pattern has another sparsity, or cannot be shared."""
    start = start_of(label)
    pattern = next((one for one in PATTERNS if start.endswith(f" {one}")), None)
    recipe = RECIPES[start.removesuffix(f" {pattern}")]
    if pattern is None:
        return recipe.at(sparsity)
    if sparsity != PATTERNS[pattern] or not isinstance(recipe.budget, se.Uniform):
        return None
    return replace(recipe, budget=se.Pattern(pattern))


@dataclass
class Pruned:
    """A model that was pruned, by which setting, and what that took."""

    label: str
    model: nn.Module
    reached: float
    seconds: float


def prune(
    network: LanguageModel,
    inputs: se.InputMoments,
    label: str,
    recipe: se.Recipe,
    targets: list[str] | None = None,
) -> Pruned:
    """A pruned copy."""
    model, start = copy.deepcopy(network.model), time.process_time()
    needs = recipe.calibrated or (recipe.refit is not None and recipe.refit.needs_inputs)
    report = se.prune(
        model, recipe, calibration=inputs if needs else None, targets=targets, progress=False
    )
    return Pruned(label, model, report.sparsity, time.process_time() - start)


def measure(
    network: LanguageModel, pruned: Pruned, fit: se.Reconstruction | None
) -> dict[str, float]:
    """Perplexities by kind, seconds of processor time, the sparsity reached and the peak memory."""
    model, seconds = pruned.model, pruned.seconds
    if fit is not None:
        model, start = copy.deepcopy(model), time.process_time()
        se.reconstruct(model, network.model, network.calibration, **vars(fit), progress=False)
        seconds += time.process_time() - start
    found = {kind: perplexity(model, data) for kind, data in network.held_out.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0
    return found | {"seconds": seconds, "reached": pruned.reached, "peak MB": peak}


def main(
    model: Annotated[Path, typer.Option(help="A causal language model's Hugging Face folder.")],
    setting: Annotated[list[str] | None, typer.Option(help="Globs over settings; all.")] = None,
    sparsity: Annotated[list[float] | None, typer.Option(help="0.5, 0.6 and 0.7.")] = None,
    targets: Annotated[list[str] | None, typer.Option(help="Globs over weights; all.")] = None,
    length: Annotated[int, typer.Option(help="Tokens of a window.")] = 512,
    calibration: Annotated[int, typer.Option(help="Windows to calibrate on.")] = 16,
    held_out: Annotated[int, typer.Option(help="Windows of each kind of text.")] = 4,
    steps: Annotated[int, typer.Option(help="Of each block, or of the whole model.")] = 64,
    results: Annotated[Path, typer.Option(help="What a later run goes on with.")] = RESULTS,
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Prune a language model in many ways and measure its perplexity on text apart."""
    torch.set_num_threads(threads)
    network = load(model, calibration=calibration, held_out=held_out, length=length)
    head = {
        "task": "language", "model": model.name, "data": network.data,
        "versions": f"spectral-engine {se.__version__}, python {platform.python_version()}, "
        f"torch {torch.__version__}",
        "command": f"python -m bench.quality.language --model MODEL --length {length} "
        f"--calibration {calibration} --held-out {held_out} --steps {steps}"
        + "".join(f" --targets '{one}'" for one in targets or []),
    }  # fmt: skip
    rows: list[tidy.Row] = []
    if results.exists():
        before, rows = tidy.read(results)
        if before.get("command") != head["command"]:
            raise typer.BadParameter(f"{results} is of another command; name other --results")
    done = {(row.setting, row.sparsity) for row in rows}

    def keep(label: str, share: float | None, found: dict[str, float]) -> None:
        rows.extend(tidy.Row("", None, label, share, name, value) for name, value in found.items())
        tidy.write(results, rows, head)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
        typer.echo(f"{label}{'' if share is None else f' {share:.0%}'}: {shown}")

    if (DENSE, None) not in done:
        data = network.held_out.items()
        keep(DENSE, None, {kind: perplexity(network.model, text) for kind, text in data})
    inputs: se.InputMoments | None = None
    pruned: Pruned | None = None
    for share in sparsity or (0.5, 0.6, 0.7):
        for label in settings():
            start, fit = start_of(label), ENDS[label.removeprefix(start_of(label))](steps)
            wanted = any(fnmatch.fnmatchcase(label, one) for one in setting or ["*"])
            recipe = recipe_of(label, share) if wanted else None
            if recipe is None or (label, share) in done or (fit and start.startswith("magnitude")):
                continue
            inputs = inputs or se.calibrate(network.model, network.calibration, targets=targets)
            if pruned is None or pruned.label != f"{start} {share}":
                pruned = prune(network, inputs, f"{start} {share}", recipe, targets)
            keep(label, share, measure(network, pruned, fit))


if __name__ == "__main__":
    typer.run(main)
