"""What a user without data gets: magnitude, the spectral setting, and "auto" without calibration.

    python -m bench.quality.without_data --packages FOLDER

A run that is stopped goes on where it was. The first figure of each network is kept, with the
seconds of processor time that pruning took.
"""

import copy
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

import spectral_engine as se
from bench import tidy
from bench.quality.networks import crepe, crnn, digits, efficientnet, g2p, language, lenet, minilm
from bench.quality.networks.network import Network

RESULTS = Path(__file__).parents[1] / "results" / "without_data.csv"
NETWORKS: dict[str, Callable[[Path], Network]] = {
    "lenet": lenet.load,
    "digits": digits.load,
    "crnn": crnn.load,
    "g2p": g2p.load,
    "minilm": partial(minilm.load, calibration=1, held_out=384),
    "crepe": crepe.load,
    "efficientnet": efficientnet.load,
}
SETTINGS = ("magnitude", "spectral", "auto")
SPARSITIES = (0.5, 0.7, 0.8, 0.9)
DENSE = "dense"


def text_model(folder: Path) -> Network:
    """A causal language model of a Hugging Face folder; minus its perplexity is the figure."""
    found = language.load(folder, calibration=1, held_out=4, length=512)
    data = next(iter(found.held_out.values()))
    return Network(
        name=folder.name,
        model=found.model,
        calibration=[],
        score=lambda pruned: {"minus perplexity": -language.perplexity(pruned, data)},
        data=f"{len(data)} windows of 512 tokens of {next(iter(found.held_out))}",
    )


def measure(network: Network, setting: str, sparsity: float) -> dict[str, float]:
    """The first figure of a pruned copy, and seconds of processor time."""
    model, start = copy.deepcopy(network.model), time.process_time()
    ignore = network.ignore or None
    report = se.prune(
        model, setting, sparsity, targets=network.targets, ignore=ignore, progress=False
    )
    seconds = time.process_time() - start
    for note in report.notes:
        typer.echo(f"  {note}")
    name, value = next(iter(network.score(model).items()))
    return {name: value, "seconds": seconds}


def main(
    packages: Annotated[Path, typer.Option(help="Folder of `pip install --no-deps --target`.")],
    network: Annotated[
        list[str] | None, typer.Option(help=f"Of {', '.join(NETWORKS)}; all by default.")
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Instead: a language model's folder.")] = None,
    setting: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(SETTINGS)}.")] = None,
    sparsity: Annotated[list[float] | None, typer.Option(help="50 to 90 % by default.")] = None,
    results: Annotated[Path, typer.Option(help="What a later run goes on with.")] = RESULTS,
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Prune networks without data, and measure what they still do."""
    torch.set_num_threads(threads)
    rows = tidy.read(results)[1] if results.exists() else []
    done = {(row.variant, row.setting, row.sparsity) for row in rows}
    head = {
        "task": "without_data",
        "command": "python -m bench.quality.without_data --packages FOLDER",
        "versions": f"spectral-engine {se.__version__}, python {platform.python_version()}, "
        f"torch {torch.__version__}",
    }
    loads = {name: partial(NETWORKS[name], packages) for name in network or list(NETWORKS)}
    if model is not None:
        loads = {model.name: partial(text_model, model)}
    for load in loads.values():
        loaded = load()
        name = loaded.name
        if (name, DENSE, None) not in done:
            metric, value = next(iter(loaded.score(loaded.model).items()))
            rows.append(tidy.Row(name, None, DENSE, None, metric, value))
        for share in sparsity or SPARSITIES:
            for label in setting or SETTINGS:
                if (name, label, share) in done:
                    continue
                found = measure(loaded, label, share)
                rows += [tidy.Row(name, None, label, share, *pair) for pair in found.items()]
                tidy.write(results, rows, head)
                shown = ", ".join(f"{metric} {value:.4g}" for metric, value in found.items())
                typer.echo(f"{name}, {share:.0%}, {label}: {shown}")


if __name__ == "__main__":
    typer.run(main)
