"""Adam whose steps are relative to each parameter's size, and under which zeros stay zero."""

import math
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import nn

#: Steps over which the rate rises to its first value, as a share of all.
WARM_UP = 0.1
#: Adam's decay of the mean of gradients, and of the mean of their squares: of few steps, short.
BETAS = (0.9, 0.99)

T = TypeVar("T")


class Trainer:
    """Trains the parameters of a module that are not fixed.

    Args:
        module: its parameters' `requires_grad` becomes whether they are trained.
        zeros: by parameter's name, True where it stays 0.
        fixed: names of parameters that stay as they are.
        rate: the first step size as a share of each parameter's root mean square, where it is not
            0; it rises over the first `WARM_UP` and falls to 0 along a half cosine.
        steps: how many there will be.
    """

    def __init__(
        self,
        module: nn.Module,
        zeros: Mapping[str, torch.Tensor],
        fixed: Collection[str],
        rate: float,
        steps: int,
    ) -> None:
        trained = {
            name: p
            for name, p in module.named_parameters()
            if p.is_floating_point() and name not in fixed
        }
        for name, p in module.named_parameters():
            p.requires_grad_(name in trained)
        self._zeros = [(trained[name], zero) for name, zero in zeros.items() if name in trained]
        self._rates = [rate * _size(p) for p in trained.values()]
        self._steps, self._step = steps, 0
        groups = [{"params": [p]} for p in trained.values()]
        self._optimizer = torch.optim.Adam(groups, betas=BETAS) if groups else None

    def step(self, loss: torch.Tensor) -> bool:
        """One step down this loss; False if nothing that is trained reaches it."""
        if self._optimizer is None or not loss.requires_grad:
            return False
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * _schedule(self._step, self._steps)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._optimizer.zero_grad()
        with torch.no_grad():
            for parameter, zero in self._zeros:
                parameter.masked_fill_(zero, 0.0)
        self._step += 1
        return True


def turns(examples: Sequence[T], steps: int) -> Iterable[T]:
    """One example a step, all in turn, in another order each time."""
    shuffle, order = random.Random(0), list(range(len(examples)))
    for step in range(steps):
        place = step % len(examples)
        if place == 0:
            shuffle.shuffle(order)
        yield examples[order[place]]


def _schedule(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / (WARM_UP * steps))
    return warm * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def _size(parameter: torch.Tensor) -> float:
    """The root mean square of what is not 0, 1 where all is."""
    values = parameter.detach()
    count = int(torch.count_nonzero(values))
    return float(values.double().square().sum() / count) ** 0.5 if count else 1.0
