"""Fit a pruned model to the dense one it came from, block by block, then as a whole.

A block's inputs are those that it has behind the blocks fitted before it, and its targets what the
dense block gives behind the dense ones: each makes up for what those before it lost. One block at a
time is copied and trained, so that memory grows with the largest block and not with the model. What
follows of the model as a whole, see `whole.py`, is only done if asked.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from spectral_engine._util.progress import Progress, check_progress, reporting
from spectral_engine.calibration.batches import held
from spectral_engine.calibration.forward import require_loaded
from spectral_engine.calibration.positions import Positions
from spectral_engine.calibration.request import Calibration
from spectral_engine.distributed.shards import is_sharded
from spectral_engine.layers.names import named_modules
from spectral_engine.recipe.reconstruction import Reconstruction
from spectral_engine.reconstruction.capture import Runner
from spectral_engine.reconstruction.fit import Example, Fitted, fit, outputs_of
from spectral_engine.reconstruction.norms import batch_norms
from spectral_engine.reconstruction.report import WHOLE, BlockReport, ReconstructReport
from spectral_engine.reconstruction.units import units_of
from spectral_engine.reconstruction.whole import fit_whole


def reconstruct(
    model: nn.Module,
    dense: nn.Module,
    calibration: Any,
    *,
    steps: int = 64,
    rate: float = 0.01,
    whole: int = 0,
    whole_rate: float = 0.0005,
    progress: Progress[BlockReport] = True,
) -> ReconstructReport:
    """Fit a pruned model to the dense one, block by block, in place; its zeros stay zero.

    All kept weights, biases and normalisations of a block are trained together, by Adam, to give
    what the dense block gives; statistics of batch normalisation are measured again. Blocks are the
    repeated modules of a ModuleList or Sequential; a model without them is one block. With `whole`
    the model is then trained as a whole to answer as the dense one does.

    Args:
        model: pruned, whole or in part. Blocks without a pruned weight or a batch normalisation
            are left alone, and so are parameters that modules outside of the block share.
        dense: the model before it was pruned, such as a `copy.deepcopy`; it is left as it was.
        calibration: batches of the model's inputs, or a `Calibration` of them.
        steps, rate, whole, whole_rate: see `Reconstruction`.
        progress: True for a bar on a terminal, False for none, or a function of each block's row.

    Returns:
        The error of each block before and after.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.

    Example:
        >>> import copy
        >>> import spectral_engine as se
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> dense, batches = copy.deepcopy(model), [torch.randn(32, 8) for _ in range(8)]
        >>> _ = se.prune(model, "magnitude", 0.5)
        >>> report = se.reconstruct(model, dense, batches)
        >>> report.blocks[0].after < report.blocks[0].before
        True
    """
    check_progress(progress)
    settings = Reconstruction(steps=steps, rate=rate, whole=whole, whole_rate=whole_rate)
    found = calibration if isinstance(calibration, Calibration) else Calibration(calibration)
    return reconstruct_blocks(model, dense, found, settings, progress=progress)


def reconstruct_blocks(
    model: nn.Module,
    dense: nn.Module,
    calibration: Calibration,
    settings: Reconstruction,
    *,
    save: Callable[[torch.Tensor], None] = lambda _: None,
    progress: Progress[BlockReport] = False,
) -> ReconstructReport:
    """As `reconstruct`; `save` is called with each tensor before it changes."""
    start = time.perf_counter()
    require_loaded(model)
    zeros, pruned = _zeros(model, dense)
    calibration = replace(calibration, batches=held(calibration.batches))
    report = ReconstructReport(settings)
    if settings.steps:
        _fit_blocks(model, dense, calibration, settings, (zeros, pruned), save, progress, report)
    if settings.whole:
        _fit_whole(model, dense, calibration, settings, zeros, save, report)
    report.seconds = time.perf_counter() - start
    return report


def _fit_blocks(
    model: nn.Module, dense: nn.Module, calibration: Calibration, settings: Reconstruction,
    found: tuple[dict[str, torch.Tensor], set[str]], save: Callable[[torch.Tensor], None],
    progress: Progress[BlockReport], report: ReconstructReport,
) -> None:  # fmt: skip
    """Each block that holds something pruned, or a batch normalisation; `found` by `_zeros`."""
    zeros, pruned = found
    wanted = {
        name: unit
        for name, unit in units_of(model).items()
        if any(one.startswith(f"{name}." if name else "") for one in pruned) or batch_norms(unit)
    }
    runners = [Runner(one, calibration, calibration.max_bytes // 2) for one in (model, dense)]
    counts = runners[1].counts(wanted)
    with reporting(progress, "reconstructing", len(wanted)) as show:
        for place, (name, unit) in enumerate(wanted.items()):
            begun = time.perf_counter()
            once = counts[name] <= 1
            if place & (place - 1) == 0 and place:  # the second block, the third, the fifth, ...
                runners[0].check(name, after=False, once=once)
                runners[1].check(name, after=True, once=once)
            examples = _examples(name, once, calibration, *runners)
            if not examples:
                report.left[name] = "no batch reached it"
                continue
            own, shared = _own(zeros, name), _shared(model, unit)
            fitting = partial(fit, unit, own, shared, examples, settings)
            row = _fitted(name, unit, fitting, begun, save, report)
            del examples, fitting
            if row is not None:
                report.blocks.append(row)
                show(row)


def _fit_whole(
    model: nn.Module, dense: nn.Module, calibration: Calibration, settings: Reconstruction,
    zeros: Mapping[str, torch.Tensor], save: Callable[[torch.Tensor], None],
    report: ReconstructReport,
) -> None:  # fmt: skip
    """The model as it is now, trained as a whole."""
    trained = partial(
        fit_whole, model, dense, calibration, zeros, settings.whole, settings.whole_rate
    )
    report.whole = _fitted(WHOLE, model, trained, time.perf_counter(), save, report)


def _fitted(
    name: str, module: nn.Module, fit: Callable[[], Fitted], begun: float,
    save: Callable[[torch.Tensor], None], report: ReconstructReport,
) -> BlockReport | None:  # fmt: skip
    """The row of a module that takes over what it is fitted to, if that is better.

    None where it has an operator without a gradient; the report says so. `begun` is when its turn
    came.
    """
    try:
        fitted = fit()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        report.left[name] = f"it cannot be trained: {str(error).splitlines()[0]}"
        return None
    kept = fitted.after < fitted.before
    if kept:
        _take_over(module, fitted, save)
    return BlockReport(name, fitted.before, fitted.after, kept, time.perf_counter() - begun)


def _zeros(model: nn.Module, dense: nn.Module) -> tuple[dict[str, torch.Tensor], set[str]]:
    """By parameter's name where it stays zero, and the names of those that pruning made so.

    A matrix keeps all its zeros, those of the dense model and of earlier prunings too; a vector
    only what was pruned of it: biases are zero at first.

    Raises:
        TypeError, ValueError: the dense model is not one of the same parameters.
    """
    if not isinstance(dense, nn.Module) or dense is model:
        raise TypeError(
            "dense: expected the model before it was pruned, such as copy.deepcopy(model); got "
            f"{'the pruned model itself' if dense is model else type(dense).__name__}"
        )
    before = dict(dense.named_parameters(remove_duplicate=False))
    zeros, pruned, known = {}, set(), False
    for name, parameter in model.named_parameters(remove_duplicate=False):
        other = before.get(name)
        if other is None:  # a factor beside a weight, which the dense model does not have
            continue
        if other.shape != parameter.shape:
            raise ValueError(
                f"dense: expected {name} of shape {tuple(parameter.shape)}, as in the pruned "
                f"model; got {tuple(other.shape)}"
            )
        known = True
        if is_sharded(parameter):
            raise ValueError(
                f"model: {name} is sharded; expected a model that is whole, as blocks are trained "
                "in one process"
            )
        zero = parameter.detach() == 0
        fewer = bool((zero & (other.detach() != 0).to(zero.device)).any())
        if fewer:
            pruned.add(name)
        if fewer or (parameter.ndim > 1 and bool(zero.any())):
            zeros[name] = zero
    if not known:
        raise ValueError(
            "dense: expected the parameters that the pruned model has; got a "
            f"{type(dense).__name__} with none of them"
        )
    return zeros, pruned


def _own(zeros: Mapping[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """Those of a module, by the names that it has for them."""
    prefix = f"{name}." if name else ""
    return {key.removeprefix(prefix): zero for key, zero in zeros.items() if key.startswith(prefix)}


def _shared(model: nn.Module, unit: nn.Module) -> list[str]:
    """The names of a module's parameters that modules outside of it hold too."""
    inside = set(map(id, unit.modules()))
    outside = {
        id(parameter)
        for _, module in named_modules(model)
        if id(module) not in inside
        for parameter in module.parameters(recurse=False)
    }
    return [name for name, parameter in unit.named_parameters() if id(parameter) in outside]


def _examples(
    name: str, once: bool, calibration: Calibration, pruned: Runner, dense: Runner
) -> list[Example]:
    """Every call of a module: what the pruned model gives it, and what the dense one makes of it.

    Raises:
        ValueError: the two call it a different number of times.
    """
    positions, found = Positions(dense.model, calibration.positions), []
    calls = zip(
        pruned.calls(name, after=False, once=once),
        dense.calls(name, after=True, once=once),
        strict=True,
    )
    for (batch, given), (_, gave) in calls:
        if len(given) != len(gave):
            raise ValueError(
                f"dense: expected {name} to be called as often as in the pruned model, "
                f"{len(given)} times; got {len(gave)}"
            )
        positions.see(batch)
        for one, other in zip(given, gave, strict=True):
            targets = outputs_of(other.output)
            weights = [
                positions.of(name, "output", target, False) if target.ndim > 1 else None
                for target in targets
            ]
            found.append(Example(one, targets, weights))
    return found


def _take_over(unit: nn.Module, fitted: Fitted, save: Callable[[torch.Tensor], None]) -> None:
    """Put a fitted copy's parameters and statistics into the module."""
    after = dict(fitted.module.named_parameters())
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = [
        (parameter, after[name]) for name, parameter in unit.named_parameters()
    ]
    for norm, new in zip(batch_norms(unit), batch_norms(fitted.module), strict=True):
        for name, buffer in norm.named_buffers(recurse=False):
            pairs.append((buffer, new.get_buffer(name)))
    for tensor, values in pairs:
        save(tensor)
        with torch.no_grad():
            tensor.copy_(values)
