"""Training that can be stopped at any point and goes on with the same result.

After each epoch all of it is on disk: weights, optimiser, generator, and whatever follows the
training (a tracker, a pruner). One thread on the CPU, so that the bits do not depend on how many
runs go side by side.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from bench.paper.training.data import Data, Part
from bench.paper.training.store import load_tree, save_tree


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: `epochs` at a rate that follows `schedule` down from `rate`.

    schedule: "cosine" to zero, "linear" to zero, "step" (a tenth after half, a hundredth after
    three quarters) or "constant"; warmup: share of the steps in which the rate rises from zero
    """

    epochs: int
    rate: float
    decay: float = 0.0
    batch: int = 128
    optimizer: str = "adamw"
    schedule: str = "cosine"
    warmup: float = 0.0

    def rate_at(self, progress: float) -> float:
        """The learning rate at a share, in [0, 1), of the training."""
        if progress < self.warmup:
            return self.rate * progress / self.warmup
        after = (progress - self.warmup) / (1.0 - self.warmup)
        shares = {
            "cosine": 0.5 + 0.5 * math.cos(math.pi * after),
            "linear": 1.0 - after,
            "step": 1.0 if after < 0.5 else 0.1 if after < 0.75 else 0.01,
            "constant": 1.0,
        }
        return self.rate * shares[self.schedule]

    def optimiser(self, model: nn.Module) -> torch.optim.Optimizer:
        """A new optimiser of the model's parameters."""
        makers: dict[str, Callable[..., torch.optim.Optimizer]] = {
            "adamw": lambda p: torch.optim.AdamW(p, self.rate, weight_decay=self.decay, fused=True),
            "adam": lambda p: torch.optim.Adam(p, self.rate, weight_decay=self.decay, fused=True),
            "sgd": lambda p: torch.optim.SGD(p, self.rate, weight_decay=self.decay, fused=True),
            "momentum": lambda p: torch.optim.SGD(
                p, self.rate, momentum=0.9, weight_decay=self.decay, fused=True
            ),
            "rmsprop": lambda p: torch.optim.RMSprop(p, self.rate, weight_decay=self.decay),
        }
        return makers[self.optimizer](model.parameters())


class Follower(Protocol):
    """What runs beside the training and is saved with it: a SpectrumTracker or a Pruner."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Judge(Protocol):
    """How good a model is on a part, as `accuracy` tells it; more is better."""

    def __call__(
        self, model: nn.Module, part: Part, prepare: Callable[[Tensor], Tensor], device: str
    ) -> float: ...


def accuracy(
    model: nn.Module,
    part: Part,
    prepare: Callable[[Tensor], Tensor],
    device: str = "cpu",
    batch: int = 500,
) -> float:
    """The fraction of images that the model classifies rightly, in evaluation mode."""
    training = model.training
    model.to(device).eval()
    correct = 0
    with torch.inference_mode():
        for start in range(0, len(part), batch):
            images = prepare(part.images[start : start + batch].to(device))
            found = model(images).argmax(1).cpu()
            correct += int((found == part.labels[start : start + batch]).sum())
    model.train(training)
    return correct / len(part)


@dataclass
class Training:
    """A model in training.

    segments: recipes one after the other, each with its learning rate from the start again
    targets: (N, ...) of the training images in place of their labels, as class probabilities
    loss: of outputs and targets. judge: of the validation part
    prepare: see `Network`. path: where its state is kept; None keeps none.
    before_epoch, after_step: called there. followers: saved and loaded with it, by name.
    history: per epoch, mean loss and validation accuracy
    """

    model: nn.Module
    data: Data
    prepare: Callable[[Tensor], Tensor]
    segments: Sequence[Recipe]
    seed: int
    targets: Tensor | None = None
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy
    judge: Judge = accuracy
    path: Path | None = None
    device: str = "cpu"
    before_epoch: Callable[[int], Any] = lambda _epoch: None
    after_step: Callable[[], Any] = lambda: None
    followers: Mapping[str, Follower] = field(default_factory=dict)
    progress: Callable[[str], None] = lambda _message: None
    history: list[dict[str, float]] = field(default_factory=list)

    def run(self, until: int | None = None) -> "Training":
        """Train to the end, from where the file left off; the model ends up in evaluation mode.

        until: the number of epochs after which to stop before the end.
        """
        # Channels last: convolutions and pooling on the CPU take half the time.
        self.model.to(self.device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = self.segments[0].optimiser(self.model)
        generator = torch.Generator().manual_seed(self.seed)
        if self.path is not None and self.path.exists():
            self._load(optimizer, generator)
        places = [(recipe, within) for recipe in self.segments for within in range(recipe.epochs)]
        for epoch, (recipe, within) in enumerate(places[:until]):
            if epoch == len(self.history):
                self._epoch(epoch, within, recipe, optimizer, generator)
        self.model.eval()
        return self

    def _epoch(
        self,
        epoch: int,
        within: int,
        recipe: Recipe,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
    ) -> None:
        self.before_epoch(epoch)
        self.model.train()
        order = torch.randperm(len(self.data.train), generator=generator)
        batches = torch.split(order, recipe.batch)
        wanted = self.data.train.labels if self.targets is None else self.targets
        total = torch.zeros((), device=self.device)
        for index, batch in enumerate(batches):
            rate = recipe.rate_at((within + index / len(batches)) / recipe.epochs)
            for group in optimizer.param_groups:
                group["lr"] = rate
            images = self.prepare(self.data.train.images[batch].to(self.device))
            labels = wanted[batch].to(self.device)
            optimizer.zero_grad()
            loss = self.loss(self.model(images), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.detach() * len(batch)
            self.after_step()
        reached = self.judge(self.model, self.data.validation, self.prepare, self.device)
        mean = float(total) / len(self.data.train)
        self.history.append({"loss": mean, "validation": reached})
        if self.path is not None:
            self._save(self.path, optimizer, generator)
        epochs = sum(one.epochs for one in self.segments)
        self.progress(f"epoch {epoch + 1}/{epochs}, loss {mean:.3f}, validation {reached:.2%}")

    def _save(
        self, path: Path, optimizer: torch.optim.Optimizer, generator: torch.Generator
    ) -> None:
        going_on = len(self.history) < sum(recipe.epochs for recipe in self.segments)
        save_tree(
            path,
            {
                "model": self.model.state_dict(),
                "optimizer": optimizer.state_dict() if going_on else None,
                "generator": generator.get_state(),
                "history": self.history,
                "followers": {name: one.state_dict() for name, one in self.followers.items()},
            },
        )

    def _load(self, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> None:
        state = load_tree(self.path) if self.path is not None else {}
        self.model.load_state_dict(state["model"])
        if state["optimizer"] is not None:
            optimizer.load_state_dict(state["optimizer"])
            for weight, values in optimizer.state.items():
                for key, value in values.items():
                    if value.shape == weight.shape:  # a fused step walks both in memory order
                        values[key] = torch.empty_like(weight).copy_(value)
        generator.set_state(state["generator"])
        self.history = state["history"]
        for name, follower in self.followers.items():
            follower.load_state_dict(state["followers"][name])


def soft_targets(
    teacher: nn.Module,
    part: Part,
    prepare: Callable[[Tensor], Tensor],
    share: float,
    temperature: float,
    device: str = "cpu",
) -> Tensor:
    """(N, classes): labels mixed with `share` of what the teacher says at that temperature.

    Distillation (Hinton, Vinyals, Dean, arXiv 1503.02531) at the cost of one pass, since images
    are not augmented.
    """
    teacher.eval()
    with torch.inference_mode():
        said = torch.cat(
            [teacher(prepare(images.to(device))).cpu() for images in torch.split(part.images, 500)]
        )
    soft = torch.softmax(said / temperature, 1)
    # Inference tensors cannot be saved for the backward pass; a copy can.
    return share * soft.clone() + (1.0 - share) * one_hot(part.labels, soft.shape[1])


def shortened(recipe: Recipe, epochs: int | None) -> Recipe:
    """The recipe with another number of epochs, if one is given."""
    return recipe if epochs is None else replace(recipe, epochs=epochs)
