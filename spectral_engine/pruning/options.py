"""The options of pruning: checked before anything is changed, and as a report says them."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from spectral_kernels.reference.patterns import NM, parse_pattern

from spectral_engine.calibration.input_moments import InputMoments
from spectral_engine.matrix.arrays import check_rank
from spectral_engine.matrix.sparsify import DEFAULT_SPARSITY, given, sparsify
from spectral_engine.pruning.allocation import Goal
from spectral_engine.pruning.report import PruneReport
from spectral_engine.recipe.legacy import Method, automatic_allocation, resolve

#: Those that say which method it is, and all that `sparsify` takes too.
_OF_METHOD = ("law", "law_parameter", "rescale", "mixture", "refit")
_OF_SPARSIFY = (*_OF_METHOD, "bias_correction", "seed", "group", "pattern")


def check_options(
    method: str,
    sparsity: float | None,
    *,
    rank: int | None = None,
    calibration: Any = None,
    forward: Any = None,
    sequential: bool | None = None,
    asymmetric: bool = False,
    allocation: str | None = None,
    floor: float | None = None,
    max_error: float | None = None,
    masks: bool = True,
    **others: Any,
) -> tuple[Goal, PruneReport]:
    """What `prune` aims at with these of its options, and a report with no layers yet.

    Raises:
        TypeError, ValueError: what `prune` raises for them, whatever the model.
    """
    if not isinstance(masks, bool):
        raise TypeError(f"masks: expected True or False; got {masks!r}")
    calibrated = calibration is not None
    usual = inspect.signature(sparsify).parameters
    options = {name: others.get(name, usual[name].default) for name in _OF_SPARSIFY}
    pattern = options["pattern"]
    one_share = pattern is not None or max_error is not None
    kind = automatic_allocation(method, calibrated, allocation, one_share)
    goal = Goal.of(given(sparsity), DEFAULT_SPARSITY, pattern, kind, floor, max_error)
    rank = None if rank is None else check_rank(rank)
    chosen = method_of(method, options)
    _try(method, goal.sparsity, options, calibrated)
    if not calibrated or isinstance(calibration, InputMoments):
        where = "with gathered moments" if calibrated else "without calibration"
        for name, value in (
            ("forward", forward), ("sequential", sequential), ("asymmetric", asymmetric),
        ):  # fmt: skip
            if value not in (None, False):
                raise ValueError(f"{name}: expected the default {where}; got {value!r}")
    used = {
        "rank": rank,
        "law_parameter": chosen.law_parameter,
        "rescale": chosen.rescale,
        "mixture": chosen.mixture,
        "refit": chosen.refit,
        "group": options["group"],
        "pattern": pattern,
        **goal.options,
        **({"bias_correction": options["bias_correction"]} if calibrated else {}),
    }
    report = PruneReport(chosen.name, chosen.law, goal.sparsity or 0.0, int(options["seed"]), used)
    return goal, report


def _try(method: str, sparsity: float | None, options: Mapping[str, Any], calibrated: bool) -> None:
    """`sparsify` a matrix of one row with them, which checks them."""
    trial = dict(options)
    columns = 1
    if options["pattern"] is not None:
        parsed = parse_pattern(options["pattern"])
        columns = parsed.of if isinstance(parsed, NM) else 1
        trial["pattern"] = str(parsed) if isinstance(parsed, NM) else "1x1"
    trial["inputs"] = torch.ones(1, columns) if calibrated else None
    sparsify(torch.zeros(1, columns), method, sparsity, **trial)


def method_of(method: str, options: Mapping[str, Any]) -> Method:
    """The method with what the options override."""
    return resolve(method, **{name: options[name] for name in _OF_METHOD})


def clamp_rank(rank: int | None, weight: torch.Tensor) -> int | None:
    """The rank, or min(m, n) of a weight that has less."""
    rows = weight.shape[0]
    return None if rank is None else min(rank, rows, weight.numel() // rows)
