"""Measure settings on a network, one row a line of a file that a later run goes on with."""

import copy
import json
import random
import time
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import spectral_engine as se
from bench.quality.grid import Setting, settings
from bench.quality.networks.network import Network

Row = dict[str, Any]
#: From a seed to what the layers see in the batches that the seed draws.
Inputs = Callable[[int], se.InputMoments]


def read_rows(path: Path) -> list[Row]:
    """The rows of a file; of two for the same measurement the later one.

    A line that a stopped run left unfinished is passed over: that measurement is made again.
    """
    if not path.exists():
        return []
    found = {}
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[_key(row)] = row
    return list(found.values())


def append_row(path: Path, row: Row) -> None:
    """Add a line in one piece, so that several runs may share the file.

    The end of line comes first: it also ends what a stopped run left unfinished.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", buffering=1 << 20) as file:
        file.write("\n" + json.dumps(row))


def _key(row: Row) -> tuple[Any, ...]:
    return (row["network"], row["label"], row["sparsity"], row["seed"])


def dense_row(network: Network) -> Row:
    """The row of the network as it is, which also carries what its data are."""
    score = network.score(network.model)
    common = {"network": network.name, "label": "dense", "sparsity": 0.0, "seed": 0}
    return {**common, "score": score, "data": network.data}


def resample(batches: Sequence[Any], seed: int) -> list[Any]:
    """All batches under seed 0, as many drawn with replacement (a bootstrap) under others."""
    if seed == 0:
        return list(batches)
    return random.Random(seed).choices(batches, k=len(batches))


def measure(network: Network, setting: Setting, sparsity: float, seed: int, inputs: Inputs) -> Row:
    """Prune a copy of the network and score it; what `prune` refuses is a row that says so.

    inputs: what the dense network's layers see, for a seed. "seconds" do not count gathering them,
    except where the setting is asymmetric, which gathers its own.
    """
    model = copy.deepcopy(network.model)
    calibration: se.Calibration | se.InputMoments | None = None
    if setting.asymmetric:
        batches = resample(network.calibration, seed)
        calibration = se.Calibration(batches, asymmetric=True, max_samples=None)
    elif setting.calibrated:
        calibration = inputs(seed)
    row: Row = {
        "network": network.name,
        "label": setting.label,
        "sparsity": sparsity,
        "seed": seed,
    }
    start = time.perf_counter()
    try:
        report = se.prune(
            model,
            setting.recipe,
            sparsity,
            calibration=calibration,
            targets=network.targets,
            ignore=network.ignore or None,
            seed=seed,
            progress=False,
        )
    except ValueError as error:
        return {**row, "refused": str(error)}
    seconds = time.perf_counter() - start
    return {
        **row,
        "reached": report.sparsity,
        "seconds": seconds,
        "score": network.score(model),
    }


def plan(
    patterns: Sequence[str], sparsities: Sequence[float], seeds: int
) -> list[tuple[Setting, float, int]]:
    """All measurements, ordered by seed: every setting has its first before any has its second."""
    chosen = list(settings(patterns))
    return [
        (setting, sparsity, seed)
        for seed in range(seeds)
        for setting in chosen
        for sparsity in sparsities
        if setting.fits(sparsity) and (seed == 0 or setting.varies)
    ]


def run(
    network: Network,
    measurements: Iterable[tuple[Setting, float, int]],
    path: Path,
    seconds: float,
) -> int:
    """Measure what the file lacks until the time is up; how many measurements are still missing."""
    done = {_key(row) for row in read_rows(path)}
    if (network.name, "dense", 0.0, 0) not in done:
        append_row(path, dense_row(network))
    missing = [
        (setting, sparsity, seed)
        for setting, sparsity, seed in measurements
        if (network.name, setting.label, sparsity, seed) not in done
    ]

    @lru_cache(maxsize=1)
    def inputs(seed: int) -> se.InputMoments:
        batches = resample(network.calibration, seed)
        return se.calibrate(
            network.model,
            batches,
            targets=network.targets,
            ignore=network.ignore or None,
            max_samples=None,  # the published numbers are of all of them
        )

    end = time.monotonic() + seconds
    for i, measurement in enumerate(missing):
        if time.monotonic() >= end:
            return len(missing) - i
        append_row(path, measure(network, *measurement, inputs))
    return 0
