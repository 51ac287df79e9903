"""Which law, rescaling, mixture and rank make the best default of method "principal"?

    python bench/principal_default.py --minilm model.safetensors

There are two kinds of evidence: the test accuracy of the demo network (LeNet-300-100 on
Fashion-MNIST, one shot), and the spectral, Frobenius and singular-value errors on encoder matrices
of a MiniLM sentence encoder. The accuracy of what draws is a mean over seeds. "magnitude" stands
beside them as the baseline.
"""

import copy
import itertools
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from safetensors import safe_open
from spectral_kernels import LawName

import spectral_engine as se
from bench import tidy
from bench.tables import Table
from bench.tidy import Row
from spectral_engine.demo.data import fashion_mnist_test, to_tensors
from spectral_engine.demo.lenet import accuracy, load_pretrained

SPARSITIES = (0.5, 0.8, 0.9, 0.95)
SEEDS = 3
MATRICES = ("attention.self.query", "attention.self.value", "intermediate.dense", "output.dense")
LAYERS = (0, 3, 5)
ERRORS = ("spectral", "frobenius", "singular values")
RESULT = Path(__file__).parent / "results" / "principal_default.csv"
NOTES = {
    "accuracy": f"of LeNet-300-100 in one shot, the mean over {SEEDS} seeds for what draws",
    "errors": f"relative, the mean over {len(LAYERS) * len(MATRICES)} matrices of MiniLM-L6",
    "rank": "as a share of min(m, n)",
}


@dataclass(frozen=True)
class Candidate:
    """`se.Principal` with a rank that is a share of min(m, n); without a law, `se.Magnitude`."""

    law: LawName | None = None
    mixture: float = 0.0
    share: float = 0.0
    rescale: bool = False

    @property
    def label(self) -> str:
        """How the table and the file call it."""
        if self.law is None:
            return "magnitude"
        parts = f"principal, law {self.law}, mixture {self.mixture:g}, rank {self.share:g}"
        return parts + (", rescaled" if self.rescale else "")

    @property
    def draws(self) -> bool:
        """Whether two seeds differ."""
        return self.law not in (None, "threshold")

    def sparsify(self, weight: torch.Tensor, sparsity: float, seed: int) -> torch.Tensor:
        """The sparse copy of a weight."""
        method: se.Method = se.Magnitude()
        if self.law is not None:
            rank = max(1, round(self.share * min(weight.shape)))
            method = se.Principal(
                rank=rank, mixture=self.mixture, law=self.law, rescale=self.rescale
            )
        sparse: torch.Tensor = se.sparsify(weight, method, sparsity, seed=seed).weight
        return sparse


def candidates() -> Iterator[Candidate]:
    """All of them, the baseline first."""
    yield Candidate()
    laws: tuple[LawName, ...] = ("threshold", "l1", "l2")
    for law, mixture, share in itertools.product(laws, (0.0, 0.1, 0.5), (0.125, 0.25, 0.5)):
        for rescale in (False,) if law == "threshold" else (False, True):
            yield Candidate(law, mixture, share, rescale)


def lenet_accuracy(candidate: Candidate, sparsity: float) -> float:
    """Mean test accuracy of the demo network pruned in one shot."""
    images, labels = to_tensors(*fashion_mnist_test())
    dense = load_pretrained()
    scores = []
    for seed in range(SEEDS if candidate.draws else 1):
        model = copy.deepcopy(dense)
        for module in model.children():
            if isinstance(module, torch.nn.Linear):
                module.weight.data = candidate.sparsify(module.weight, sparsity, seed)
        scores.append(accuracy(model, images, labels))
    return float(np.mean(scores))


def matrix_errors(
    matrices: list[torch.Tensor], candidate: Candidate, sparsity: float
) -> tuple[float, float, float]:
    """The mean of each of the `ERRORS` over matrices."""
    found = [se.errors(A, candidate.sparsify(A, sparsity, 0)) for A in matrices]
    return (
        float(np.mean([e.spectral for e in found])),
        float(np.mean([e.frobenius for e in found])),
        float(np.mean([e.mean_singular_value for e in found])),
    )


def main(
    minilm: Annotated[Path, typer.Option(help="model.safetensors of MiniLM-L6.", exists=True)],
    output: Annotated[Path, typer.Option(help="The CSV that is written.")] = RESULT,
) -> None:
    """Measure every candidate, print a table for each sparsity, write a CSV."""
    with safe_open(minilm, "pt") as file:
        wanted = [f"encoder.layer.{i}.{name}.weight" for i in LAYERS for name in MATRICES]
        names = [key for key in file.keys() for name in wanted if key.endswith(name)]  # noqa: SIM118
        matrices = [file.get_tensor(name).float() for name in names]
    # One thread: LAPACK's threads wait for one another on matrices this small.
    torch.set_num_threads(1)
    rows = []
    for sparsity in SPARSITIES:
        table = Table(f"sparsity {sparsity:.0%}", ("setting", "accuracy", *ERRORS))
        for candidate in candidates():
            reached = lenet_accuracy(candidate, sparsity)
            told = (reached, *matrix_errors(matrices, candidate, sparsity))
            table.rows.append((candidate.label, *(f"{value:.4f}" for value in told)))
            rows += [
                Row("", None, candidate.label, sparsity, metric, value)
                for metric, value in zip(("accuracy", *ERRORS), told, strict=True)
            ]
        Console(width=100).print(table.shown())
    head = {
        "task": "principal default",
        "command": "python bench/principal_default.py --minilm FILE",
        "versions": f"spectral-engine {se.__version__}, python {platform.python_version()}, "
        f"torch {torch.__version__}",
    }
    tidy.write(output, rows, head | NOTES)


if __name__ == "__main__":
    typer.run(main)
