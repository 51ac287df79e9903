"""Prune a checkpoint on disk, one tensor in memory at a time."""

import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from spectral_kernels import stream_id

from spectral_engine.checkpoints import open_checkpoint, rewrite
from spectral_engine.layers import Skipped, patterns, select
from spectral_engine.pruning import check_options, clamp_rank
from spectral_engine.report import LayerReport, PruneReport, layer_report
from spectral_engine.single import sparsify

#: A file does not tell an embedding from a linear layer; these names do, and are left alone
#: unless `targets` asks for them.
EMBEDDINGS = ("*embed*", "*wte.weight", "*wpe.weight")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def prune_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    method: str = "magnitude",
    sparsity: float = 0.9,
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
    measure: bool = False,
    force: bool = False,
    progress: Callable[[LayerReport], None] | None = None,
) -> PruneReport:
    """Write a pruned copy of a weight file or a Hugging Face style folder.

    Every tensor with two or more dimensions is pruned, embeddings (by their names) only where
    `targets` names them. Order, dtypes, metadata and all other files stay as they are; the target
    appears whole or not at all, and replaces an existing one only with `force`.

    Args:
        source: .safetensors, .pt, .pth, .bin, .npz or a folder; no code of a pickle is run.
        target: a file of the same format or .safetensors; a folder for a folder.
        targets, ignore: globs over tensor names, with or without ".weight", or "re:...".
        Others: see `prune`.

    Raises:
        TypeError, ValueError, OSError: name what was wrong; nothing is left half-written.
    """
    start = time.perf_counter()
    overrides = {
        "law": law, "law_parameter": law_parameter, "rescale": rescale, "mixture": mixture,
        "refit": refit,
    }  # fmt: skip
    chosen, options = check_options(method, sparsity, rank, overrides, seed=seed, group=group)
    report = PruneReport(chosen.name, chosen.law, float(sparsity), seed)
    names, report.skipped = _selected(
        Path(source),
        None if targets is None else patterns(targets, "targets"),
        [] if ignore is None else patterns(ignore, "ignore"),
    )

    def transform(name: str, weight: torch.Tensor) -> torch.Tensor:
        try:
            out = sparsify(
                weight,
                method,
                sparsity,
                rank=clamp_rank(rank, weight),
                stream=stream_id(name),
                **options,
            )
        except ValueError as error:
            raise ValueError(f"{source}: tensor {name!r}: {error}") from error
        row = layer_report(name, weight, out.report, out.report.errors if measure else None)
        report.layers.append(row)
        if progress is not None:
            progress(row)
        pruned: torch.Tensor = out.weight
        return pruned

    rewrite(source, target, transform, select=names, force=force)
    report.seconds = time.perf_counter() - start
    return report


def _selected(
    source: Path, targets: list[str] | None, ignore: list[str]
) -> tuple[list[str], list[Skipped]]:
    """The tensors to prune, and those of two or more dimensions that are not, with reasons."""
    names, skipped = [], []
    with open_checkpoint(source) as checkpoint:
        for name in checkpoint.names:
            shape, dtype = checkpoint.shape(name), checkpoint.dtype(name)
            if len(shape) < 2:
                continue
            called = (name, name.removesuffix(".weight"))
            reason = select(called, (), targets, ignore)
            if dtype not in _DTYPES:
                reason = f"dtype {dtype} is not pruned"
            elif math.prod(shape) == 0:
                reason = "empty"
            elif targets is None and select(called, (), list(EMBEDDINGS), []) is None:
                reason = reason or "looks like an embedding; name it in targets to prune it"
            if reason is None:
                names.append(name)
            else:
                skipped.append(Skipped(name, reason))
    if not names:
        raise ValueError(
            f"targets: nothing to prune in {source} with targets={targets}, ignore={ignore}; "
            "expected globs or 're:...' over tensor names (a file knows no class names)"
        )
    return names, skipped
