"""A pruned model trained as a whole towards the dense one; what is zero stays zero.

Blocks that are fitted one by one each mend their own error; here each learns what the answer of the
model needs (knowledge distillation, Hinton et al., arXiv 1503.02531). What the pruned model is
trained to, on the batches of a calibration and without labels:

| output             | loss                                                                      |
|--------------------|---------------------------------------------------------------------------|
| one named "logits" | Kullback-Leibler divergence from the dense model's distribution, the mean |
|                    | over positions that count                                                 |
| others             | squared error relative to the dense output's energy in the batch          |

It holds a copy of the model, its gradients and two moments of each, and runs both over each batch.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from spectral_engine.calibration.batches import Forward, call, copies, named_error
from spectral_engine.calibration.forward import evaluating, hooked
from spectral_engine.calibration.positions import Positions
from spectral_engine.calibration.request import Calibration
from spectral_engine.reconstruction.fit import (
    APART,
    Fitted,
    outputs_of,
    recurrent_trainable,
    trainable,
)
from spectral_engine.reconstruction.trainer import Trainer, turns

_LOGITS = "logits"


@dataclass(frozen=True)
class _Answer:
    """What a model gives for a batch: tensors, and whether they are logits."""

    tensors: Sequence[torch.Tensor]
    logits: bool

    @classmethod
    def of(cls, output: Any) -> "_Answer":
        named = output if isinstance(output, Mapping) else vars(output) if _has(output) else {}
        found = named.get(_LOGITS)
        if isinstance(found, torch.Tensor):
            return cls([found], True)
        return cls(outputs_of(output), False)


def _has(output: Any) -> bool:
    return isinstance(getattr(output, _LOGITS, None), torch.Tensor) and hasattr(output, "__dict__")


class _Runner:
    """Runs a model over batches and gives what it answers."""

    def __init__(self, model: nn.Module, calibration: Calibration) -> None:
        self._model, self._own = model, calibration.forward is not None
        self._forward: Forward = calibration.forward or call
        self._device = next((p.device for p in model.parameters()), None)

    def answer(self, index: int, batch: Any) -> _Answer:
        """That to one batch, of which it works on a copy."""
        found: list[Any] = []

        def keep(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            found.append(output)

        ((_, own),) = copies([batch], self._device, self._own)
        with hooked(self._model, keep, True):
            try:
                self._forward(self._model, own)
            except Exception as error:
                named = named_error(error, index, batch)
                if named is error:
                    raise
                raise named from error
        return _Answer.of(found[-1]) if found else _Answer([], False)


def fit_whole(
    model: nn.Module,
    dense: nn.Module,
    calibration: Calibration,
    zeros: Mapping[str, torch.Tensor],
    steps: int,
    rate: float,
) -> Fitted:
    """A copy of a pruned model, trained towards the dense one.

    Args:
        model, dense: of the same parameters; neither is changed.
        calibration: its batches, held; of `APART` or more the last ones judge.
        zeros: by parameter's name, True where it stays 0.
        steps, rate: see `Trainer`.
    """
    twin = trainable(model)
    tables = {id(p) for m in twin.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    fixed = {name for name, p in twin.named_parameters() if id(p) in tables}
    batches = list(enumerate(calibration.batches))
    apart = len(batches) // APART
    shown, judges = batches[: len(batches) - apart], batches[len(batches) - apart :]
    loss = partial(
        _loss, _Runner(twin, calibration), _Runner(dense, calibration),
        Positions(dense, calibration.positions),
    )  # fmt: skip
    with evaluating(dense), evaluating(twin):
        recurrent_trainable(twin)
        before = _mean(loss, judges or shown)
        trainer = Trainer(twin, zeros, fixed, rate, steps)
        for place in turns(shown, steps):
            with torch.enable_grad():
                if not trainer.step(loss(*place)):
                    break  # nothing that is trained reaches an output
        after = _mean(loss, judges or shown)
    return Fitted(twin, before, after)


def _mean(loss: Callable[..., torch.Tensor], places: Sequence[tuple[int, Any]]) -> float:
    with torch.no_grad():
        return math.fsum(float(loss(*place)) for place in places) / len(places)


def _loss(
    pruned: _Runner, dense: _Runner, positions: Positions, index: int, batch: Any
) -> torch.Tensor:
    """That of one batch; 0 where the two give the same."""
    with torch.no_grad():
        wanted = dense.answer(index, batch)
    found = pruned.answer(index, batch)
    if [x.shape for x in found.tensors] != [x.shape for x in wanted.tensors]:
        raise ValueError(
            "dense: expected a model that gives outputs of the same shapes as the pruned one; got "
            f"{[tuple(x.shape) for x in wanted.tensors]} beside "
            f"{[tuple(x.shape) for x in found.tensors]}"
        )
    if not found.tensors:
        return torch.zeros(())
    positions.see(batch)
    parts = [
        _divergence(x, y, positions) if wanted.logits else _squared(x, y)
        for x, y in zip(found.tensors, wanted.tensors, strict=True)
    ]
    return torch.stack(parts).mean()


def _divergence(found: torch.Tensor, wanted: torch.Tensor, positions: Positions) -> torch.Tensor:
    """KL(wanted || found) of logits (..., classes), in nats a position."""
    each = functional.kl_div(
        found.float().log_softmax(-1), wanted.float().log_softmax(-1),
        reduction="none", log_target=True,
    ).sum(-1)  # fmt: skip
    weights = positions.of("", "output", wanted, False) if wanted.ndim > 1 else None
    if weights is None:
        return each.mean()
    weights = weights.to(each)
    return (each.flatten() * weights).sum() / weights.sum().clamp(min=1e-30)


def _squared(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    energy = wanted.float().square().mean()
    error = (found.float() - wanted.float()).square().mean()
    return error / (energy if energy > 0 else 1.0)
