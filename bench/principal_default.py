"""Which law, rescaling, mixture and rank make the best default of method "principal"?

    python bench/principal_default.py --minilm model.safetensors -o bench/results/principal.json

Two kinds of evidence: test accuracy of the demo network (LeNet-300-100 on Fashion-MNIST, one shot),
and spectral, Frobenius and singular-value errors on encoder matrices of a MiniLM sentence encoder.
Laws that draw are averaged over seeds. "magnitude" stands beside them as the baseline.
"""

import argparse
import copy
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors import safe_open

import spectral_engine as se
from spectral_engine.demo.data import fashion_mnist_test, to_tensors
from spectral_engine.demo.lenet import accuracy, load_pretrained

SPARSITIES = (0.5, 0.8, 0.9, 0.95)
SEEDS = 3
MATRICES = ("attention.self.query", "attention.self.value", "intermediate.dense", "output.dense")
LAYERS = (0, 3, 5)


def candidates() -> Iterator[dict[str, Any]]:
    """Settings of `se.sparsify`, the baseline first; rank as a share of min(m, n)."""
    yield {"method": "magnitude"}
    for law, mixture, share in itertools.product(
        ("threshold", "l1", "l2"), (0.0, 0.1, 0.5), (0.125, 0.25, 0.5)
    ):
        for rescale in (False,) if law == "threshold" else (False, True):
            yield {
                "method": "principal",
                "law": law,
                "mixture": mixture,
                "share": share,
                "rescale": rescale,
            }


def sparsify(weight: torch.Tensor, setting: dict[str, Any], sparsity: float, seed: int) -> Any:
    """`se.sparsify` under a setting whose rank is a share."""
    options = {key: value for key, value in setting.items() if key != "share"}
    if "share" in setting:
        options["rank"] = max(1, round(setting["share"] * min(weight.shape)))
    return se.sparsify(weight, sparsity=sparsity, seed=seed, **options)


def lenet_accuracy(setting: dict[str, Any], sparsity: float, seeds: int) -> float:
    """Mean test accuracy of the demo network pruned in one shot."""
    images, labels = to_tensors(*fashion_mnist_test())
    dense = load_pretrained()
    scores = []
    for seed in range(seeds):
        model = copy.deepcopy(dense)
        for module in model.children():
            if isinstance(module, torch.nn.Linear):
                module.weight.data = sparsify(module.weight, setting, sparsity, seed).weight
        scores.append(accuracy(model, images, labels))
    return float(np.mean(scores))


def matrix_errors(
    matrices: list[torch.Tensor], setting: dict[str, Any], sparsity: float, seeds: int
) -> tuple[float, float, float]:
    """Mean relative spectral, Frobenius and leading singular-value error over matrices."""
    found = [
        se.errors(A, sparsify(A, setting, sparsity, seed).weight)
        for A in matrices
        for seed in range(seeds)
    ]
    return (
        float(np.mean([e.spectral for e in found])),
        float(np.mean([e.frobenius for e in found])),
        float(np.mean([e.mean_singular_value for e in found])),
    )


def main() -> None:
    """Measure every candidate, print a table for each sparsity, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minilm", type=Path, required=True, help="model.safetensors of MiniLM-L6")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    with safe_open(arguments.minilm, "pt") as file:
        wanted = [f"encoder.layer.{i}.{name}.weight" for i in LAYERS for name in MATRICES]
        names = [key for key in file.keys() for name in wanted if key.endswith(name)]  # noqa: SIM118
        matrices = [file.get_tensor(name).float() for name in names]
    # One thread: LAPACK's threads wait for one another on matrices this small.
    torch.set_num_threads(1)
    rows = []
    for sparsity in SPARSITIES:
        table = Table(title=f"sparsity {sparsity:.0%}")
        for column in ("setting", "LeNet accuracy", "spectral", "Frobenius", "singular values"):
            table.add_column(column)
        for setting in candidates():
            seeds = 1 if setting.get("law", "threshold") == "threshold" else SEEDS
            row = {
                "sparsity": sparsity,
                **setting,
                "accuracy": lenet_accuracy(setting, sparsity, seeds),
            }
            row["spectral"], row["frobenius"], row["singular_values"] = matrix_errors(
                matrices, setting, sparsity, 1
            )
            rows.append(row)
            figures = (row["accuracy"], row["spectral"], row["frobenius"], row["singular_values"])
            table.add_row(
                " ".join(str(value) for value in setting.values()), *(f"{x:.4f}" for x in figures)
            )
        Console(width=100).print(table)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
