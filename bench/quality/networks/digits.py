"""A small network that reads handwritten digits: three convolutions and two linear layers.

It is trained when it is loaded, in a minute, on two thirds of the 1,797 digits that scikit-learn
ships (8 x 8 pixels, enlarged to 20 x 20 in an image of 28 x 28, moved by up to three pixels).
"""

import itertools
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from bench.quality.networks.network import Network

TRAINING, EPOCHS, BATCH, RATE, SEED = 1100, 25, 64, 3e-3, 1
CHANNELS = (1, 32, 64, 128)


def network() -> nn.Sequential:
    """Untrained: images (N, 1, 28, 28) to logits (N, 10)."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(CHANNELS):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(9 * CHANNELS[-1], 256), nn.ReLU(), nn.Linear(256, 10)
    )


def digits() -> tuple[Tensor, Tensor]:
    """Images (1797, 1, 28, 28) in a fixed random order, and what they show."""
    found = load_digits()
    small = torch.from_numpy(found.images).float()[:, None] / 16.0
    large = functional.interpolate(small, size=(20, 20), mode="bilinear", align_corners=False)
    order = torch.randperm(len(small), generator=torch.Generator().manual_seed(0))
    return functional.pad(large, (4, 4, 4, 4))[order], torch.from_numpy(found.target)[order]


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int = EPOCHS) -> None:
    """Adam with one cycle of its rate, in place; the model is left in evaluation mode."""
    random = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), RATE / 3)
    steps = epochs * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=random)
        for chosen in order[: len(order) // BATCH * BATCH].split(BATCH):
            down, right = torch.randint(-3, 4, (2,), generator=random).tolist()
            moved = torch.roll(images[chosen], (down, right), (2, 3))
            loss = functional.cross_entropy(model(moved), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of the images whose digit has the largest logit."""
    with torch.inference_mode():
        found = torch.cat([model(part) for part in torch.split(images, 256)]).argmax(1)
    return float((found == labels).float().mean())


def load(packages: Path, epochs: int = EPOCHS) -> Network:
    """The trained network; nothing of `packages` is needed."""
    images, labels = digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = network()
    train(model, images[:TRAINING], labels[:TRAINING], epochs)
    held_out = images[TRAINING:], labels[TRAINING:]
    return Network(
        name="digits CNN",
        model=model,
        calibration=list(torch.split(images[:1024], 256)),
        score=lambda pruned: {"accuracy": accuracy(pruned, *held_out)},
        data=f"1024 digits to calibrate on, {len(held_out[0])} others",
    )
