"""A module fitted to given outputs by Adam; what is zero in its weights stays zero.

A copy is fitted, in float32 where the module is in half precision, and the module is left as it is:
who calls takes the copy's values over if they do better.

The error is the squared one, relative to the dense output's energy, at the positions that count. Of
a module with layer normalisations it is relative at each position by itself: what follows
normalises each, and a first token of many times the length of the others would rule otherwise. Of
others it is relative to the energy over all batches.
"""

import copy
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from spectral_engine.calibration.batches import copied, tensors_of
from spectral_engine.calibration.inputs import Call
from spectral_engine.recipe.reconstruction import Reconstruction
from spectral_engine.reconstruction.norms import batch_norms, reestimate
from spectral_engine.reconstruction.trainer import Trainer, turns

#: A position's energy counts for at least this share of the mean one.
LEAST_ENERGY = 0.2
#: Classes of normalisations of each position by itself.
_NORMS = re.compile("LayerNorm|RMSNorm")
#: One batch in so many is not fitted to but judges the fit, where there are as many.
APART = 8


@dataclass(frozen=True)
class Example:
    """One call of a module: what it is given, what the dense one gave, and how positions count.

    targets: floating tensors, in the order of the output. weights: for each, of its shape without
    the last axis, flat; None where all count alike.
    """

    call: Call
    targets: Sequence[torch.Tensor]
    weights: Sequence[torch.Tensor | None]


@dataclass(frozen=True)
class Fitted:
    """A fitted copy, and the error before and after on the batches that judge it."""

    module: nn.Module
    before: float
    after: float


def outputs_of(output: Any) -> list[torch.Tensor]:
    """The tensors of an output that are fitted."""
    return [tensor for tensor in tensors_of(output) if tensor.is_floating_point()]


@dataclass(frozen=True)
class _Scale:
    """What the error of an output is relative to.

    energy: the mean square of its entries over all examples. by_position: see the head.
    """

    energy: float
    by_position: bool

    @classmethod
    def of(cls, examples: Sequence[Example], index: int, by_position: bool) -> "_Scale":
        """That of the output of this number."""
        squares = count = 0.0
        for one in examples:
            target, weight = one.targets[index].double().square(), one.weights[index]
            if weight is not None:
                target = target.flatten(0, -2) * weight[:, None]
            squares += float(target.sum())
            rows = target.numel() if weight is None else weight.sum() * target.shape[-1]
            count += float(rows)
        features = examples[0].targets[index].ndim > 1
        return cls(squares / max(count, 1.0) or 1.0, by_position and features)

    def error(
        self, found: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None
    ) -> torch.Tensor:
        """The mean relative squared error, over positions of this weight."""
        errors = (found - target).square()
        if not self.by_position:
            return errors.mean() / self.energy
        own = target.square().mean(-1) + LEAST_ENERGY * self.energy
        relative = (errors.mean(-1) / own).flatten()
        if weight is None:
            return relative.mean()
        return (relative * weight).sum() / weight.sum().clamp(min=1e-30)


def trainable(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode that gradients pass through, in float32 where it was in less."""
    twin = copy.deepcopy(module).eval()
    if any(p.is_floating_point() and p.itemsize < 4 for p in twin.parameters()):
        twin.float()
    recurrent_trainable(twin)
    return twin


def recurrent_trainable(module: nn.Module) -> None:
    """Make ready what cuDNN has no gradient of in evaluation mode; without dropout both agree."""
    for part in module.modules():
        if isinstance(part, nn.RNNBase):
            part.dropout, part.training = 0.0, True


def fit(
    module: nn.Module,
    zeros: Mapping[str, torch.Tensor],
    fixed: Iterable[str],
    examples: Sequence[Example],
    settings: Reconstruction,
) -> Fitted:
    """A copy of a module, fitted to the examples.

    Args:
        module: in evaluation mode for the caller's purposes; not changed.
        zeros: by parameter's name, True where it stays 0. fixed: parameters that stay as they are.
        examples: at least one; of `APART` or more the last ones judge.
        settings: steps and rate.
    """
    twin = trainable(module)
    if any(p.is_floating_point() and p.itemsize < 4 for p in module.parameters()):
        examples = [_widened(one) for one in examples]
    apart = len(examples) // APART
    shown, judges = examples[: len(examples) - apart], examples[len(examples) - apart :]
    by_position = any(_NORMS.search(type(part).__name__) for part in twin.modules())
    scales = [_Scale.of(examples, i, by_position) for i in range(len(examples[0].targets))]
    before = _error(twin, judges or shown, scales)
    _reestimate_if_better(twin, shown, judges or shown, scales, before)
    trainer = Trainer(twin, zeros, set(fixed), settings.rate, settings.steps)
    for one in turns(shown, settings.steps):
        with torch.enable_grad():
            if not trainer.step(_loss(twin, one, scales)):
                break  # nothing of it reaches an output
    return Fitted(twin, before, _error(twin, judges or shown, scales))


def _reestimate_if_better(
    twin: nn.Module,
    shown: Sequence[Example],
    judges: Sequence[Example],
    scales: Sequence[_Scale],
    before: float,
) -> None:
    """Measure the statistics of batch normalisation again, unless few inputs make them worse."""
    if not batch_norms(twin):
        return
    kept = copy.deepcopy(twin.state_dict())
    try:
        reestimate(twin, [one.call for one in shown])
        better = _error(twin, judges, scales) < before
    except ValueError:  # a single value a channel has no variance
        better = False
    if not better:
        twin.load_state_dict(kept)


def _loss(module: nn.Module, one: Example, scales: Sequence[_Scale]) -> torch.Tensor:
    """The relative squared error of one example, 1 where an output is 0."""
    args, kwargs = copied((tuple(one.call.args), dict(one.call.kwargs)), None)
    found = outputs_of(module(*args, **kwargs))
    if [x.shape for x in found] != [x.shape for x in one.targets]:
        raise ValueError(
            "dense: expected a model that gives outputs of the same shapes as the pruned one; got "
            f"{[tuple(x.shape) for x in one.targets]} beside {[tuple(x.shape) for x in found]}"
        )
    parts = [
        scale.error(x, target, weight)
        for x, target, weight, scale in zip(found, one.targets, one.weights, scales, strict=True)
    ]
    return torch.stack(parts).mean()


def _error(module: nn.Module, examples: Sequence[Example], scales: Sequence[_Scale]) -> float:
    with torch.no_grad():
        return math.fsum(float(_loss(module, one, scales)) for one in examples) / len(examples)


def _widened(one: Example) -> Example:
    """The same in float32."""

    def wide(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value.float()
        if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
            return type(value)(map(wide, value))
        if isinstance(value, dict):
            return {key: wide(item) for key, item in value.items()}
        return value

    call = Call(wide(tuple(one.call.args)), wide(dict(one.call.kwargs)))
    return Example(call, [target.float() for target in one.targets], one.weights)
