"""LeNet-300-100 on Fashion-MNIST, the network that the package ships.

Settings are chosen by the validation part of the training images, which the network was not trained
on; the test images give the second figure. Where the training images are not installed, a fifth of
the test images calibrates and the rest is all that there is to measure with.
"""

from pathlib import Path

import torch
from torch import Tensor

from bench.quality.networks.network import Network
from bench.train_lenet import split_validation
from spectral_engine.demo.data import (
    DEFAULT_FOLDER,
    fashion_mnist_test,
    load_idx_folder,
    to_tensors,
)
from spectral_engine.demo.lenet import accuracy, load_pretrained, pretrained_metadata

BATCH = 512
CALIBRATION = 8 * BATCH


def load(packages: Path, data: Path = DEFAULT_FOLDER) -> Network:
    """LeNet-300-100; `data` is the folder of the training images, if they are installed."""
    test = to_tensors(*fashion_mnist_test())
    try:
        training = to_tensors(*load_idx_folder(data, "train"))
    except FileNotFoundError:
        return network(test[0][:2000], {"test": (test[0][2000:], test[1][2000:])})
    kept, validation = split_validation(training, pretrained_metadata()["seed"])
    return network(kept[0][:CALIBRATION], {"validation": validation, "test": test})


def network(calibration: Tensor, held_out: dict[str, tuple[Tensor, Tensor]]) -> Network:
    """The network with these images to calibrate on, and accuracy on each held-out part."""
    sizes = " and ".join(f"{len(labels)} {name}" for name, (_, labels) in held_out.items())
    return Network(
        name="LeNet-300-100",
        model=load_pretrained(),
        calibration=list(torch.split(calibration, BATCH)),
        score=lambda model: {name: accuracy(model, *part) for name, part in held_out.items()},
        data=f"Fashion-MNIST, {len(calibration)} images to calibrate on, {sizes} images",
    )
