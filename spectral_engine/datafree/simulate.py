"""Batches that stand in for data: drawn, written by the model itself, or dreamed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spectral_engine._util.checks import integer
from spectral_engine.calibration.batches import call
from spectral_engine.calibration.forward import evaluating
from spectral_engine.datafree.dream import dreamed, output_of
from spectral_engine.datafree.entry import Entry, entry_of
from spectral_engine.datafree.tokens import can_write, written

#: Samples: at most, at least, and how many multiplications a pass over them may take.
MOST, LEAST, PASS = 256, 16, 2e11
#: Tokens at most, and multiplications of a pass over them.
MOST_TOKENS, PASS_TEXTS = 4096, 2e12
#: Gradient steps of a dream, the fewest and the fewest samples that are worth it, and the
#: multiplications of all of them.
STEPS, FEWEST, FEWEST_MOVED, DREAM = 60, 20, 32, 1e12
BATCH = 32


@dataclass(frozen=True)
class Simulated:
    """Inputs for a model that nobody has data of.

    batches: to calibrate on, as `Calibration` takes them. apart: others, to measure on.
    said: what they are.
    """

    batches: list[Any]
    apart: list[Any]
    said: str


def simulate(model: nn.Module, *, seed: int = 0) -> Simulated:
    """Simulated inputs of a model, for calibration without data.

    What it takes is found out by trying. Images, sounds and features are drawn with the statistics
    that all real ones share (`datafree/fields.py`), then moved by gradient steps to where the model
    is sure of its answer and its BatchNorm layers see what they remember (`datafree/dream.py`). A
    language model writes its texts itself.

    Args:
        model: left as it was, with the random state.
        seed: fixes them, for one version of torch on one kind of machine.

    Returns:
        The batches, others to measure on, and what they are.

    Raises:
        TypeError, ValueError: no module; or why no inputs were found that it takes.

    Example:
        >>> import spectral_engine as se
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 2))
        >>> simulated = se.simulate(model)
        >>> simulated.said
        '256 samples of 8 numbers, drawn, 60 steps towards sure answers'
        >>> _ = se.prune(model, "least-squares", 0.5, calibration=simulated.batches)
    """
    integer("seed", seed, least=0, most=2**64 - 1)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module; got {type(model).__name__}")
    random = torch.Generator().manual_seed(seed % 2**63)
    try:
        entry = entry_of(model, random)
    except ValueError as error:
        raise ValueError(f"model: its inputs cannot be simulated: {error}") from error
    if entry.vocabulary:
        return _texts(model, entry, random, seed)
    return _numbers(model, entry, random)


def _texts(model: nn.Module, entry: Entry, random: torch.Generator, seed: int) -> Simulated:
    macs = entry.macs or 1.0
    most = min(MOST_TOKENS // entry.shape[0], MOST)
    count = int(min(max(PASS_TEXTS / macs, LEAST), most))
    more = max(count // 4, 4)
    samples, how = entry.draw(count + more, random), "drawn"
    if can_write(model):
        with evaluating(model):
            samples = written(model, count + more, entry.shape[0], seed % 2**63)
        how = "written by the model"
    device = next(model.parameters()).device
    samples = samples.to(device)
    said = f"{count} samples of {entry}, {how}"
    return Simulated(_split(entry, samples[:count]), _split(entry, samples[count:]), said)


def _numbers(model: nn.Module, entry: Entry, random: torch.Generator) -> Simulated:
    macs = entry.macs or 1.0
    count = int(min(max(PASS / macs, LEAST), MOST))
    affordable = int(max(min(DREAM / (STEPS * macs), count), FEWEST_MOVED))
    steps = int(min(DREAM / (3.0 * affordable * macs), STEPS))
    like = next(p for p in model.parameters() if p.is_floating_point())
    moved = False
    parts = []
    with evaluating(model):
        for wanted in (count, max(count // 4, LEAST)):
            fewer = min(wanted, affordable) if steps >= FEWEST else wanted
            start = entry.draw(fewer, random).to(like)
            found = _dreamed(model, entry, start, steps, random)
            moved = moved or found is not start
            # What is not moved need not be few.
            more = wanted if found is start else fewer
            parts.append(found if more == fewer else entry.draw(more, random).to(like))
    how = f", {steps} steps towards sure answers" if moved else ""
    said = f"{len(parts[0])} samples of {entry}, drawn{how}"
    return Simulated(_split(entry, parts[0]), _split(entry, parts[1]), said)


def _dreamed(
    model: nn.Module, entry: Entry, start: Tensor, steps: int, random: torch.Generator
) -> Tensor:
    if steps < FEWEST:
        return start
    try:
        return dreamed(model, start, steps, random, lambda m, x: call(m, entry.batch(x)))
    except RuntimeError:  # a model, or a part of it, that has no gradient
        return start


def _split(entry: Entry, samples: Tensor) -> list[Any]:
    return [entry.batch(part) for part in torch.split(samples, BATCH)]


def outputs(model: nn.Module, batches: Sequence[Any]) -> Tensor:
    """What the model gives for all batches, (samples, ...), float32."""
    found = []
    with evaluating(model):
        for batch in batches:
            output = output_of(call(model, batch))
            if output is None:
                raise ValueError("model: expected an output of numbers; got none")
            found.append(output.float())
    return torch.cat(found)


def output_error(dense: Tensor, pruned: Tensor) -> float:
    """||pruned - dense|| over the deviation of `dense` from its mean over samples; inf if not
    finite.
    """
    if dense.shape != pruned.shape:
        return math.inf
    spread = float((dense - dense.mean(0)).norm())
    error = float((pruned - dense).norm())
    return error / spread if spread > 0.0 and math.isfinite(error) else math.inf
