"""Prune a checkpoint on disk, one tensor in memory at a time."""

import math
import os
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from spectral_kernels import stream_id

from spectral_engine.checkpoints import open_checkpoint, rewrite
from spectral_engine.layers.find import Skipped
from spectral_engine.layers.selector import Selector, matches
from spectral_engine.matrix.sparsify import DEFAULT_SPARSITY, sparsify
from spectral_engine.pruning.allocation import Goal, mean_sparsity, none_empty
from spectral_engine.pruning.options import check_options, clamp_rank
from spectral_engine.pruning.report import LayerReport, PruneReport, layer_report

#: A file does not tell an embedding from a linear layer; these names do, and are left alone
#: unless `targets` asks for them.
EMBEDDINGS = ("*embed*", "*wte.weight", "*wpe.weight")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def prune_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    method: str = "magnitude",
    sparsity: float | None = DEFAULT_SPARSITY,
    *,
    targets: str | Iterable[str] | None = None,
    ignore: str | Iterable[str] | None = None,
    rank: int | None = None,
    law: str | None = None,
    law_parameter: float | None = None,
    rescale: bool | None = None,
    mixture: float | None = None,
    refit: str | None = None,
    seed: int = 0,
    group: str = "tensor",
    pattern: str | None = None,
    allocation: str = "uniform",
    floor: float | None = None,
    max_error: float | None = None,
    measure: bool = False,
    force: bool = False,
    progress: Callable[[LayerReport], None] | None = None,
) -> PruneReport:
    """Write a pruned copy of a weight file or a Hugging Face style folder.

    Every tensor with two or more dimensions is pruned, embeddings (by their names) only where
    `targets` names them. Order, dtypes, metadata and all other files stay as they are; the target
    appears whole or not at all, and replaces an existing one only with `force`. An allocation
    other than uniform, and an error target, read every tensor twice.

    Args:
        source: .safetensors, .pt, .pth, .bin, .npz or a folder; no code of a pickle is run.
        target: a file of the same format or .safetensors; a folder for a folder.
        targets, ignore: globs over tensor names, with or without ".weight", or "re:...".
        Others: see `prune`.

    Raises:
        TypeError, ValueError, OSError: name what was wrong; nothing is left half-written.
    """
    start = time.perf_counter()
    options: dict[str, Any] = {
        "law": law, "law_parameter": law_parameter, "rescale": rescale, "mixture": mixture,
        "refit": refit, "seed": seed, "group": group, "pattern": pattern,
    }  # fmt: skip
    goal, report = check_options(
        method, sparsity, rank=rank, allocation=allocation, floor=floor, max_error=max_error,
        **options,
    )  # fmt: skip
    selector = Selector.of(targets, ignore)
    names, report.skipped = _selected(Path(source), selector)
    report.unmatched = selector.unmatched
    shares, report.requested = _shares(Path(source), names, goal, group, pattern)

    def transform(name: str, weight: torch.Tensor) -> torch.Tensor:
        try:
            out = sparsify(
                weight,
                method,
                shares[name],
                rank=clamp_rank(rank, weight),
                stream=stream_id(name),
                **options,
            )
        except ValueError as error:
            raise ValueError(f"{source}: tensor {name!r}: {error}") from error
        errors = out.report.errors if measure else None
        row = layer_report(name, weight, out.report, errors, names[name])
        report.layers.append(row)
        if progress is not None:
            progress(row)
        pruned: torch.Tensor = out.weight
        return pruned

    rewrite(source, target, transform, select=names, force=force)
    report.seconds = time.perf_counter() - start
    return report


def _shares(
    source: Path, names: Iterable[str], goal: Goal, group: str, pattern: str | None
) -> tuple[dict[str, float], float]:
    """The sparsity of each tensor, and that of all together."""
    with open_checkpoint(source) as checkpoint:
        shapes = {name: checkpoint.shape(name) for name in names}
        shares = goal.sparsities(
            (name, partial(checkpoint.read, name), shape) for name, shape in shapes.items()
        )
    for name, (m, *rest) in shapes.items():
        shares[name] = none_empty(shares[name], m, math.prod(rest), group, pattern)
    sizes = ((shares[name], math.prod(shape)) for name, shape in shapes.items())
    return shares, mean_sparsity(sizes) if goal.sparsity is None else goal.sparsity


def _selected(source: Path, selector: Selector) -> tuple[dict[str, tuple[str, ...]], list[Skipped]]:
    """The tensors to prune, with the other names of the same memory, and those left alone.

    Those of fewer than two dimensions are not spoken of.
    """
    names: dict[str, tuple[str, ...]] = {}
    skipped = []
    with open_checkpoint(source) as checkpoint:
        shared: dict[str, list[str]] = {}
        for name in checkpoint.names:
            if len(checkpoint.shape(name)) >= 2:
                shared.setdefault(checkpoint.tied_to(name) or name, []).append(name)
        for first, called in shared.items():
            reason = selector.reason_against(
                [*called, *(name.removesuffix(".weight") for name in called)]
            )
            if checkpoint.dtype(first) not in _DTYPES:
                reason = f"{str(checkpoint.dtype(first)).removeprefix('torch.')} is not pruned"
            elif math.prod(checkpoint.shape(first)) == 0:
                reason = "empty"
            elif selector.targets is None and any(map(_looks_like_embedding, called)):
                reason = reason or "looks like an embedding; name it in targets to prune it"
            if reason is None:
                names[first] = tuple(called[1:])
            else:
                skipped.append(Skipped(first, reason))
        for file in checkpoint.other_weights():
            skipped.append(Skipped(file, "a file of other weights, copied as it is"))
    if not names:
        raise ValueError(
            f"targets: nothing to prune in {source} with targets={selector.targets}, "
            f"ignore={selector.ignore}; expected globs or 're:...' over tensor names "
            "(a file knows no class names)"
        )
    return names, skipped


def _looks_like_embedding(name: str) -> bool:
    return any(matches(pattern, [name.lower()]) for pattern in EMBEDDINGS)
