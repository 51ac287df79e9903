"""LeNet-300-100: the network that the demo prunes.

Three fully connected layers, 784-300-100-10, 266,200 weights (LeCun, Bottou, Bengio, Haffner,
"Gradient-based learning applied to document recognition", 1998): since Han, Pool, Tran, Dally,
"Learning both weights and connections", 2015, the first network that a pruning method is tried on.
bench/train_lenet.py trains the weights that the package ships.
"""

import json
from importlib.resources import as_file, files
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load
from torch import Tensor, nn

from spectral_engine._util.checks import integer

#: The shipped checkpoint, inside the package.
CHECKPOINT = files(__package__) / "assets" / "lenet300100-fashion-mnist.safetensors"


class LeNet300100(nn.Module):
    """The network 784-300-100-10 with ReLU: images (N, 28, 28) or (N, 784) to logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, 10)

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.relu(self.fc1(images.flatten(1)))
        hidden = torch.relu(self.fc2(hidden))
        logits: Tensor = self.fc3(hidden)
        return logits


def load_pretrained() -> LeNet300100:
    """The network that the package ships, float32, on the CPU, in evaluation mode.

    The weights are a fresh copy at each call; torch's random state is left alone.
    """
    with torch.device("meta"):
        model = LeNet300100()
    model.to_empty(device="cpu")
    model.load_state_dict(load(CHECKPOINT.read_bytes()))
    return model.eval()


def pretrained_metadata() -> dict[str, Any]:
    """How the shipped network was trained, as bench/train_lenet.py wrote it.

    Among its keys are seed, versions, learning_rate, weight_decay, epochs, and the fractions
    validation_accuracy and test_accuracy.
    """
    with as_file(CHECKPOINT) as path, safe_open(path, framework="pt") as checkpoint:
        metadata: dict[str, Any] = json.loads(checkpoint.metadata()["training"])
    return metadata


def accuracy(model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int = 2000) -> float:
    """The fraction of images that a model puts into their class.

    Args:
        model: images to logits (N, classes); its mode is left as it is.
        images: (N, ...).
        labels: (N,).
        batch_size: images that go through the model at a time.

    Returns:
        The fraction, in [0, 1].

    Raises:
        ValueError: the two lengths differ or are zero; `batch_size` is below 1.
    """
    if len(images) != len(labels) or len(images) == 0:
        raise ValueError(
            "labels: expected one for each image and at least one, "
            f"got {len(labels)} labels for {len(images)} images"
        )
    batch_size = integer("batch_size", batch_size, least=1)
    correct = 0
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = slice(start, start + batch_size)
            correct += int((model(images[batch]).argmax(1) == labels[batch]).sum())
    return correct / len(images)
