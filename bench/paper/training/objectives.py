"""What a network may learn, and by what it is then judged: losses other than cross entropy."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from bench.paper.training.data import Part, normalise
from bench.paper.training.loop import Judge, accuracy
from bench.paper.training.networks import CLASSES

#: The share of a smoothed label that goes to all classes alike.
SMOOTHING = 0.1


@dataclass(frozen=True)
class Objective:
    """loss: of outputs and targets. targets: of a part, None for its labels."""

    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy
    targets: Callable[[Part], Tensor] | None = None
    judge: Judge = accuracy


def classes(part: Part) -> Tensor:
    """(N, 10): 1 for the label."""
    return one_hot(part.labels, CLASSES).float()


def smoothed(part: Part) -> Tensor:
    """(N, 10): labels smoothed (Szegedy et al., arXiv 1512.00567, section 7)."""
    return (1.0 - SMOOTHING) * classes(part) + SMOOTHING / CLASSES


def pixels(part: Part) -> Tensor:
    """(N, 784): the images themselves, as a network takes them."""
    return normalise(part.images).flatten(1)


def explained(
    model: nn.Module, part: Part, prepare: Callable[[Tensor], Tensor], device: str = "cpu"
) -> float:
    """1 - squared error / variance of the images that an autoencoder reconstructs; 1 at best."""
    wanted = pixels(part)
    training = model.training
    model.eval()
    with torch.inference_mode():
        found = model(prepare(part.images.to(device))).cpu()
    model.train(training)
    return 1.0 - float((found - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())


CLASSIFY = Objective()
OBJECTIVES = {
    "cross entropy": CLASSIFY,
    "label smoothing": Objective(targets=smoothed),
    "squared error": Objective(mse_loss, classes),
    "reconstruction": Objective(mse_loss, pixels, explained),
}
