"""Inputs that a network is sure of: simulated ones, moved by gradient steps.

Noise excites a trained network otherwise than its data do. Steps on the input towards an answer
that is drawn for each sample, and towards the means and variances that BatchNorm layers remember
of the training, bring what its layers see nearer to that (DeepInversion, Yin et al., arXiv
1912.08795).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from spectral_engine.calibration.batches import Forward, tensors_of

#: Of Adam, on inputs of about unit variance.
RATE = 0.05
#: Weight of the distance to where the steps began, and of the differences between neighbours.
PRIOR = 0.2
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def output_of(result: Any) -> Tensor | None:
    """The first tensor of numbers that a model gives, None where there is none."""
    for tensor in tensors_of(result):
        if tensor.is_floating_point():
            return tensor
    return None


def dreamed(model: nn.Module, start: Tensor, steps: int, random: Generator, run: Forward) -> Tensor:
    """The inputs `start` (N, ...) after gradient steps; no weight gets a gradient.

    Args:
        model: in evaluation mode. run: as `Calibration.forward`.
        start: of floating dtype. steps: of Adam, at least 1.
        random: draws the answers.

    Returns:
        As `start`; itself where the model gives no answers to choose from and has no BatchNorm.

    Raises:
        RuntimeError: the model cannot be differentiated.
    """
    answers = output_of(run(model, start))
    chooses = answers is not None and answers.ndim == 2 and answers.shape[1] > 1
    if not chooses and not any(isinstance(module, _NORMS) for module in model.modules()):
        return start
    target = None
    if chooses and answers is not None:
        target = torch.randint(answers.shape[1], (len(answers),), generator=random)
        target = target.to(answers.device)
    with torch.enable_grad(), _distances(model) as distances:
        inputs = start.detach().clone().requires_grad_(True)
        optimizer = torch.optim.Adam([inputs], RATE)
        for _ in range(steps):
            distances.clear()
            output = output_of(run(model, inputs))
            loss = PRIOR * ((inputs - start).square().mean() + _roughness(inputs))
            if target is not None and output is not None:
                loss = loss + functional.cross_entropy(output.float(), target)
            loss = loss + sum(distances)
            [inputs.grad] = torch.autograd.grad(loss, [inputs])
            optimizer.step()
    found = inputs.detach()
    return found if bool(torch.isfinite(found).all()) else start


def _roughness(inputs: Tensor) -> Tensor:
    """The mean square difference of neighbours along each axis of space or time."""
    total = inputs.new_zeros(())
    for axis in range(2, inputs.ndim):
        if inputs.shape[axis] > 1:
            total = total + inputs.diff(dim=axis).square().mean()
    return total


@contextmanager
def _distances(model: nn.Module) -> Iterator[list[Tensor]]:
    """A list to which each BatchNorm adds how far its inputs are from what it remembers."""
    found: list[Tensor] = []

    def hook(module: Any, args: Any) -> None:
        seen = args[0]
        axes = [axis for axis in range(seen.ndim) if axis != 1]
        spread = module.running_var + module.eps
        mean = (seen.mean(axes) - module.running_mean).square() / spread
        ratio = seen.var(axes, unbiased=False) / spread
        found.append(mean.mean() + ratio.clamp_min(1e-6).log().square().mean())

    norms = [m for m in model.modules() if isinstance(m, _NORMS) and m.running_mean is not None]
    handles = [norm.register_forward_pre_hook(hook) for norm in norms]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
