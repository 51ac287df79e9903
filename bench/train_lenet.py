"""Train the network that the package ships: LeNet-300-100 on Fashion-MNIST.

    python bench/train_lenet.py [--data FOLDER] [--output FILE] [--seed 0] [--threads 2]

Adam with decoupled weight decay, its rate falling linearly to zero, on 55,000 of the 60,000
training images. The other 5,000 make every choice, learning rate, weight decay and number of
epochs; the test images are seen once, by the network chosen. With one machine, one number of
threads and one seed, the file written is the same to the bit.
"""

import itertools
import json
import math
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import save as serialise
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR

from spectral_engine.demo.data import DEFAULT_FOLDER, load_idx_folder, to_tensors
from spectral_engine.demo.lenet import LeNet300100, accuracy

ASSETS = Path(__file__).parents[1] / "spectral_engine" / "demo" / "assets"
LEARNING_RATES = (1e-3, 2e-3)
WEIGHT_DECAYS = (1e-2, 1e-1)
EPOCHS = (10, 16)
BATCH_SIZE = 128
VALIDATION_SIZE = 5_000

Examples = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Choice:
    """What the validation part chooses between."""

    learning_rate: float
    weight_decay: float
    epochs: int


def split_validation(examples: Examples, seed: int) -> tuple[Examples, Examples]:
    """The training part and the validation part, drawn without replacement under `seed`."""
    images, labels = examples
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    held, kept = order[:VALIDATION_SIZE], order[VALIDATION_SIZE:]
    return (images[kept], labels[kept]), (images[held], labels[held])


def fit(examples: Examples, choice: Choice, seed: int) -> LeNet300100:
    """A network trained on the examples; initial weights and batches come from `seed`."""
    images, labels = examples
    torch.manual_seed(seed)
    model = LeNet300100()
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=choice.learning_rate, weight_decay=choice.weight_decay
    )
    steps = choice.epochs * math.ceil(len(images) / BATCH_SIZE)
    schedule = LambdaLR(optimiser, lambda step: 1 - step / steps)
    for _ in range(choice.epochs):
        for batch in torch.randperm(len(images)).split(BATCH_SIZE):
            optimiser.zero_grad()
            cross_entropy(model(images[batch]), labels[batch]).backward()
            optimiser.step()
            schedule.step()
    return model


def save(path: Path, weights: dict[str, Tensor], training: dict[str, Any]) -> None:
    """Write the checkpoint under a temporary name and rename it.

    The metadata is one JSON string: safetensors stores several keys in an arbitrary order, which
    would change the file from run to run.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        metadata = {"training": json.dumps(training, sort_keys=True)}
        partial.write_bytes(serialise(weights, metadata))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def main(
    data: Annotated[Path, typer.Option(help="Folder of the idx files.")] = DEFAULT_FOLDER,
    output: Annotated[Path, typer.Option(help="Checkpoint to write.")] = (
        ASSETS / "lenet300100-fashion-mnist.safetensors"
    ),
    seed: Annotated[int, typer.Option(min=0)] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Other numbers give other bits.")] = 2,
) -> None:
    """Train LeNet-300-100 on Fashion-MNIST and write it as safetensors."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    training, validation = split_validation(to_tensors(*load_idx_folder(data, "train")), seed)

    candidates = []
    for values in itertools.product(LEARNING_RATES, WEIGHT_DECAYS, EPOCHS):
        choice = Choice(*values)
        model = fit(training, choice, seed)
        candidates.append((accuracy(model, *validation), choice, model))
        print(f"{choice}: validation accuracy {candidates[-1][0]:.4f}", flush=True)
    reached, choice, model = max(candidates, key=lambda candidate: candidate[0])
    test_accuracy = accuracy(model, *to_tensors(*load_idx_folder(data, "test")))
    record = asdict(choice) | {
        "data": "Fashion-MNIST",
        "seed": seed,
        "threads": threads,
        "batch_size": BATCH_SIZE,
        "optimiser": "AdamW",
        "validation_accuracy": reached,
        "test_accuracy": test_accuracy,
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
    }
    save(output, model.state_dict(), record)
    print(f"test accuracy {test_accuracy:.4f}; written to {output}")


if __name__ == "__main__":
    typer.run(main)
