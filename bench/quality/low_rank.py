"""Whether two thin factors beside the sparse part are worth their bytes, network by network.

    python -m bench.quality.low_rank --packages FOLDER

Each setting is measured with and without `LowRank()` at the same number of stored entries, which
are the same bytes. Where no module holds factors, as in a GRU, what is measured is the sum, merged.

The margin: with S the largest entries of A, those over t, a direction of A - S with the singular
value sigma costs m + n entries and takes sigma^2 off ||A - S||_F^2; the m + n smallest of the kept
entries, all near t, take t^2 each. So at first a direction pays if sigma > t sqrt(m + n).
"""

import copy
import math
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

import spectral_engine as se
from bench import tidy
from bench.quality.__main__ import NETWORKS, RESULTS
from bench.quality.networks.network import Network
from spectral_engine.layers.find import layers_to_prune
from spectral_engine.layers.selector import Selector
from spectral_engine.pruning.plan import plan_model
from spectral_engine.sparsifying.low_rank import working
from spectral_engine.sparsifying.stacks import sparsify_layer

COMMAND = "python -m bench.quality.low_rank --packages FOLDER"
SPARSITIES = (0.7, 0.8, 0.9)
#: What is measured with and without factors; those after the first two are calibrated.
SETTINGS: dict[str, se.Recipe] = {
    "magnitude": se.Recipe(),
    "spectral budget and refit": se.Recipe(budget=se.Spectral(), refit=se.SpectralRefit()),
    "calibrated": se.Recipe(calibrated=True),
    "least squares": se.Recipe(refit=se.LeastSquares()),
    "ALPS": se.Recipe(refit=se.ALPS()),
}
#: With factors, by the metric that suits: as OATS has it where nothing is refitted.
METRICS = {"calibrated": "scaled"}
DIRECTIONS = "directions that pay"
#: The last number of a measurement.
LAST = "seconds"
HEAD = {
    "task": "low rank",
    "command": COMMAND,
    "versions": f"spectral-engine {se.__version__}, python {platform.python_version()}, "
    f"torch {torch.__version__}",
    "seconds": "processor time of pruning, one thread",
}


def with_factors(name: str) -> se.Recipe:
    """The setting with factors of whichever rank is best."""
    return replace(SETTINGS[name], low_rank=se.LowRank(metric=METRICS.get(name, "outputs")))


def pruned(
    network: Network, recipe: se.Recipe, sparsity: float, inputs: se.InputMoments | None
) -> tuple[torch.nn.Module, float, float]:
    """A pruned copy whose weights are S + L R; the share of zeros, and of entries in factors."""
    model = copy.deepcopy(network.model)
    plan = plan_model(model, [recipe.at(sparsity)], network.targets, network.ignore or None)
    stored = held = size = 0
    for layer in plan.layers:
        one, share = plan.assigned[layer.name]
        moments = None if inputs is None else inputs.moments.get(layer.name)
        matrices = layer.matrices()
        out = sparsify_layer(matrices, layer.name, one, share, moments, seed=0)
        factors = 0
        merged = out.weight
        if out.factors is not None:
            left, right = (working(part) for part in out.factors)
            merged = (working(out.weight) + left @ right).to(matrices.dtype)
            factors = left.numel() + right.numel()
        layer.write(merged)
        stored, held, size = stored + out.nnz, held + factors, size + matrices.numel()
    return model, 1.0 - stored / size, held / stored


def paying(network: Network) -> Iterator[tidy.Row]:
    """How many directions of what magnitude leaves pay, of how many there are."""
    selector = Selector.of(network.targets, network.ignore or None)
    found: dict[float, list[int]] = {sparsity: [] for sparsity in SPARSITIES}
    total = 0
    for layer in layers_to_prune(network.model, selector)[0]:
        weight = layer.matrices()
        if weight.ndim != 2:
            continue
        m, n = weight.shape
        total += min(m, n)
        for sparsity in SPARSITIES:
            sparse = se.sparsify(weight, "magnitude", sparsity).weight
            values = torch.linalg.svdvals((weight - sparse).double())
            threshold = float(sparse[sparse != 0].abs().min())
            found[sparsity].append(int((values > threshold * math.sqrt(m + n)).sum()))
    for sparsity, counts in found.items():
        yield tidy.Row(network.name, None, DIRECTIONS, sparsity, "share", sum(counts) / total)


def measured(
    network: Network, settings: list[str], done: Callable[[tuple[str, str, float]], bool]
) -> Iterator[tidy.Row]:
    """Every setting with and without factors at every sparsity, unless it is done."""
    inputs = None
    if any(SETTINGS[name].needs_inputs for name in settings):
        ignore = network.ignore or None
        inputs = se.calibrate(
            network.model, network.calibration, targets=network.targets, ignore=ignore
        )
    first = next(iter(network.score(network.model)))
    yield tidy.Row(network.name, None, "dense", None, first, network.score(network.model)[first])
    yield from paying(network)
    for name in settings:
        calibrated = SETTINGS[name].needs_inputs
        for sparsity in SPARSITIES:
            for label, recipe in (
                (name, SETTINGS[name]), (f"{name} + factors", with_factors(name)),
            ):  # fmt: skip
                if done((network.name, label, sparsity)):
                    continue
                start = time.process_time()
                model, reached, share = pruned(
                    network, recipe, sparsity, inputs if calibrated else None
                )
                seconds = time.process_time() - start
                score = network.score(model)[first]
                place = (network.name, None, label, sparsity)
                yield tidy.Row(*place, first, score)
                yield tidy.Row(*place, "reached", reached)
                yield tidy.Row(*place, "share in factors", share)
                yield tidy.Row(*place, LAST, seconds)


def table(rows: list[tidy.Row]) -> Table:
    """A line a network and setting, two columns a sparsity: without factors, with them."""
    found = {row[:5]: row.value for row in rows}
    scores = {row.variant: row.metric for row in rows if row.setting == "dense"}
    heads = (f"{one:.0%}{two}" for one in SPARSITIES for two in ("", " + factors"))
    shown = Table("network", "setting", *heads)
    for network, metric in scores.items():
        for name in SETTINGS:
            cells = [
                found.get((network, None, label, sparsity, metric))
                for sparsity in SPARSITIES
                for label in (name, f"{name} + factors")
            ]
            if any(cell is not None for cell in cells):
                shown.add_row(network, name, *("-" if x is None else f"{x:.3f}" for x in cells))
        shares = (found.get((network, None, DIRECTIONS, one, "share")) for one in SPARSITIES)
        padded = (cell for x in shares for cell in ("-" if x is None else f"{x:.2%}", ""))
        shown.add_row(network, DIRECTIONS, *padded)
    return shown


def main(
    packages: Annotated[Path, typer.Option(help="Folder of `pip install --no-deps --target`.")],
    network: Annotated[list[str] | None, typer.Option(help="All but efficientnet.")] = None,
    setting: Annotated[list[str] | None, typer.Option(help=", ".join(SETTINGS))] = None,
    results: Annotated[Path, typer.Option(help="The CSV.")] = RESULTS / "low_rank.csv",
) -> None:
    """Measure settings with and without factors; what the CSV has already stays."""
    torch.set_num_threads(1)
    console = Console(width=140)
    wanted = setting or list(SETTINGS)
    for name in network or [one for one in NETWORKS if one != "efficientnet"]:
        rows = tidy.read(results)[1] if results.exists() else []
        places = {(row.variant, row.setting, row.sparsity) for row in rows if row.metric == LAST}
        for row in measured(NETWORKS[name](packages), wanted, places.__contains__):
            rows = [one for one in rows if one[:5] != row[:5]] + [row]
            if row.metric == LAST:
                console.print(f"{row.variant}, {row.setting}, {row.sparsity:.0%}")
                tidy.write(results, rows, HEAD)
        tidy.write(results, rows, HEAD)
    console.print(table(tidy.read(results)[1]))


if __name__ == "__main__":
    typer.run(main)
