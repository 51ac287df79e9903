"""Running statistics of batch normalisation, measured again: pruning moves what they describe."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from spectral_engine._util.observe import random_state_kept
from spectral_engine.calibration.batches import call, copied, copies, held
from spectral_engine.calibration.forward import require_loaded
from spectral_engine.calibration.inputs import Call
from spectral_engine.calibration.request import Calibration

_KIND = nn.modules.batchnorm._BatchNorm


def batch_norms(module: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The normalisations in a module that keep running statistics."""
    return [
        part
        for part in module.modules()
        if isinstance(part, _KIND) and part.running_mean is not None
    ]


@contextmanager
def _measuring(module: nn.Module) -> Iterator[None]:
    """Its normalisations take the plain mean over the batches that run inside; all else stays."""
    norms = batch_norms(module)
    kept = [(norm, norm.momentum, norm.training) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum, norm.training = None, True
    try:
        with torch.no_grad():
            yield
    finally:
        for norm, momentum, training in kept:
            norm.momentum, norm.training = momentum, training


def reestimate(module: nn.Module, calls: Sequence[Call]) -> None:
    """Measure the statistics of a module in evaluation mode again, over these calls."""
    if batch_norms(module):
        with _measuring(module):
            for one in calls:
                args, kwargs = copied((tuple(one.args), dict(one.kwargs)), None)
                module(*args, **kwargs)


def reestimate_norms(model: nn.Module, calibration: Any) -> int:
    """Measure the running statistics of a model's batch normalisations again, in place.

    Pruning changes what a normalisation is given, and with it the mean and the variance that it
    should take off. Nothing else changes: dropout stays off, and weights are as they were.

    Args:
        model: pruned, or not. calibration: batches of its inputs, or a `Calibration` of them.

    Returns:
        How many normalisations there are.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.

    Example:
        >>> import spectral_engine as se
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.BatchNorm1d(4))
        >>> _ = se.prune(model, "magnitude", 0.5)
        >>> se.reestimate_norms(model, [torch.randn(64, 8) for _ in range(4)])
        1
    """
    found = calibration if isinstance(calibration, Calibration) else Calibration(calibration)
    require_loaded(model)
    parameter = next(model.parameters(), None)
    device = None if parameter is None else parameter.device
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with random_state_kept(model), _measuring(model):
            for _, batch in copies(held(found.batches), device, found.forward is not None):
                (found.forward or call)(model, batch)
    finally:
        for module, training in modes:
            module.training = training
    return len(batch_norms(model))
