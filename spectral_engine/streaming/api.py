"""Prune a checkpoint on disk: one tensor in memory at a time, or, calibrated, one block."""

import os
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import nn

from spectral_engine._util.checks import boolean, file_path, integer
from spectral_engine._util.progress import Progress, check_progress, reporting
from spectral_engine.calibration.request import Calibration
from spectral_engine.checkpoints import Checkpoint, open_checkpoint, rewrite
from spectral_engine.checkpoints.atomic import check_replaceable
from spectral_engine.checkpoints.rewrite import check_folders
from spectral_engine.distributed.groups import is_first, sharing_group
from spectral_engine.distributed.owners import errors_of_all
from spectral_engine.pruning.file import refuse_low_rank
from spectral_engine.pruning.model import as_calibration
from spectral_engine.pruning.report import CalibrationReport, LayerReport, PruneReport
from spectral_engine.recipe.methods import Method
from spectral_engine.recipe.presets import as_recipes
from spectral_engine.recipe.recipe import Recipe
from spectral_engine.reconstruction.units import alike
from spectral_engine.streaming.estimate import Estimate, estimated
from spectral_engine.streaming.files.fingerprint import fingerprint_of
from spectral_engine.streaming.files.unfinished import (
    Resume,
    Unfinished,
    check_resume,
    unfinished_run,
)
from spectral_engine.streaming.folder import folder_of, streaming_of, versions
from spectral_engine.streaming.pieces import IN_MEMORY
from spectral_engine.streaming.run import Streaming
from spectral_engine.streaming.uncalibrated import Finish, prune_by_weights


def prune_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    recipe: Recipe | Method | str | Sequence[Recipe] = "magnitude",
    sparsity: float | None = None,
    *,
    calibration: Any = None,
    targets: str | Iterable[str] | None = None,
    ignore: str | Iterable[str] | None = None,
    seed: int = 0,
    measure: bool = False,
    force: bool = False,
    resume: Resume = "auto",
    max_memory: int | None = None,
    progress: Progress[LayerReport] = True,
) -> PruneReport:
    """Write a pruned copy of a weight file or a Hugging Face style folder.

    A tensor is judged as `prune` would judge it in its model, where config.json names one that
    transformers knows, and by its name and shape elsewhere; the report says which. Embeddings are
    pruned only where `targets` names them, and what belongs to a quantised weight never. Order,
    dtypes, metadata and all other files stay as they are; the target appears whole or not at all. A
    budget that layers share by what is in them reads every tensor twice.

    With `calibration` a folder's model is built without its weights, and run one block at a time:
    its weights are read, it is pruned by the inputs that it has behind the pruned blocks before it,
    what it gives goes to the disk, and it is let go of. The result is that of `prune` on the model
    in memory with `Calibration(batches, sequential=True)`.

    A run that ends early, by a signal or a full disk, keeps what it has done beside the target, and
    the same call goes on from there. Without calibration, files under 256 MiB are begun anew.

    Args:
        source: .safetensors, .pt, .pth, .bin, .npz or a folder; no code of a pickle is run.
        target: a file of the same format or .safetensors; a folder for a folder.
        recipe, sparsity, seed, measure, progress: as for `prune`; a recipe that needs calibration
            inputs is refused without them.
        calibration: batches of the model's inputs, or a `Calibration`, as for `prune`; for a folder
            of a transformers model whose blocks repeat. Layers are calibrated one after the other
            unless it says `sequential=False`.
        targets, ignore: globs over tensor names, with or without ".weight", or "re:..."; class
            names too where the model is known.
        force: replace an existing target.
        resume: whether to go on from an earlier run on the target: "auto" if there is one,
            "required" or not at all, "never". One of other inputs is refused.
        max_memory: bytes that a calibrated run plans to hold beside the program, by an estimate of
            what a block takes while it runs; what moments leave of it saves repeated work. None
            for as much as `Calibration.max_bytes` allows.

    Returns:
        What was done to each tensor, what was left alone and why.

    Raises:
        TypeError, ValueError, OSError: name what was wrong; nothing is left half-written.

    Example:
        >>> import pathlib, tempfile, torch
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> torch.save({"a.weight": torch.randn(8, 6)}, folder / "dense.pt")
        >>> report = prune_file(folder / "dense.pt", folder / "pruned.pt", "magnitude", 0.75)
        >>> report.nnz, report.size
        (12, 48)
    """
    return prune_into(
        source, target, recipe, sparsity, calibration=calibration, targets=targets, ignore=ignore,
        seed=seed, measure=measure, force=force, resume=resume, max_memory=max_memory,
        progress=progress,
    )  # fmt: skip


def prune_into(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    recipe: Recipe | Method | str | Sequence[Recipe],
    sparsity: float | None,
    *,
    calibration: Any = None,
    targets: str | Iterable[str] | None = None,
    ignore: str | Iterable[str] | None = None,
    seed: int = 0,
    measure: bool = False,
    force: bool = False,
    resume: Resume = "auto",
    max_memory: int | None = None,
    progress: Progress[LayerReport] = True,
    finish: Finish | None = None,
) -> PruneReport:
    """`prune_file`, with a say in what becomes of the pruned file or folder.

    Args:
        finish: makes the target of what is pruned, which lies elsewhere, in place of a rename;
            called by the first of processes that share their work. A run that ends meanwhile does
            it again from the start.

    The other arguments, the result and the errors are those of `prune_file`.
    """
    check_resume(resume)
    if calibration is None:
        return prune_by_weights(
            source, target, recipe, sparsity, targets=targets, ignore=ignore, seed=seed,
            measure=measure, force=force, progress=progress, resume=resume, finish=finish,
        )  # fmt: skip
    start = time.perf_counter()
    boolean("force", force)
    check_progress(progress)
    group = sharing_group()
    with ExitStack() as stack:
        with errors_of_all(group):
            path = folder_of(file_path("source", source))
            goal = Path(os.path.abspath(file_path("target", target)))
            check_folders(path, goal)
            check_replaceable(goal, force=force)
            chosen = (recipe, sparsity, calibration, targets, ignore, seed, measure, max_memory)
            checkpoint = stack.enter_context(open_checkpoint(path))
            streaming = _streaming(checkpoint, *chosen)
            if max_memory is not None:
                _require_memory(estimated(streaming), max_memory)
            fingerprint = _fingerprint(path, streaming)
        work = stack.enter_context(unfinished_run(goal, fingerprint, resume))
        report = _streamed(
            streaming, checkpoint, goal, work, force=force, progress=progress, finish=finish
        )
    report.notes += _notes(recipe)
    report.seconds = time.perf_counter() - start
    return report


def estimate_file(
    source: str | os.PathLike[str],
    recipe: Recipe | Method | str | Sequence[Recipe] = "magnitude",
    sparsity: float | None = None,
    *,
    calibration: Any,
    targets: str | Iterable[str] | None = None,
    ignore: str | Iterable[str] | None = None,
) -> Estimate:
    """What a calibrated `prune_file` will take, without doing it.

    Args:
        source, recipe, sparsity, calibration, targets, ignore: as for `prune_file`.

    Returns:
        Its memory, its time on this machine, and the room on the disk.

    Raises:
        TypeError, ValueError, OSError: what `prune_file` refuses before it begins.

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> estimate_file(folder / "weights.npz", "wanda", calibration=[])
        Traceback (most recent call last):
        ...
        ValueError: calibration: expected a Hugging Face folder, ...
    """
    path = folder_of(file_path("source", source))
    with open_checkpoint(path) as checkpoint:
        return estimated(
            _streaming(checkpoint, recipe, sparsity, calibration, targets, ignore, 0, False, None)
        )


def _fingerprint(path: Path, streaming: Streaming) -> dict[str, Any]:
    """What the bytes of a run depend on; not on how many processes share it."""
    plan = streaming.plan
    layers = {one.name: [one.view.part, plan.assigned[one.name].sparsity] for one in plan.layers}
    return fingerprint_of(
        path, plan.recipes, streaming.calibration, versions(), layers=layers, seed=streaming.seed,
        measure=streaming.measure,
    )  # fmt: skip


def _streamed(
    streaming: Streaming,
    checkpoint: Checkpoint,
    target: Path,
    work: Unfinished,
    *,
    force: bool,
    progress: Progress[LayerReport],
    finish: Finish | None,
) -> PruneReport:
    """Prune a folder's model and write the folder again.

    Args:
        streaming: the model. checkpoint: the folder, open. target: the new folder.
        work: what an earlier run has done.
        force, progress, finish: as for `prune_into`.

    Returns:
        What was done to each layer, as `prune` would report it.
    """
    plan = streaming.plan
    with reporting(is_first() and progress, "pruning", len(plan.layers)) as show:
        rows, passes = streaming.run(work, show)
    with errors_of_all(sharing_group()):
        if is_first():
            where = work.where(work.state["done"])
            pruned = target if finish is None else work.emptied("draft") / target.name
            rewrite(
                checkpoint, pruned, lambda name, _: work.read(where[name], name), select=where,
                force=force,
            )  # fmt: skip
            if finish is not None:
                finish(pruned)
    return PruneReport(
        plan.recipes, plan.requested, streaming.seed, calibration=CalibrationReport(passes),
        layers=rows, skipped=[*plan.skipped], unmatched=[*plan.unmatched],
    )  # fmt: skip


def _notes(recipe: Any) -> list[str]:
    """What a preset leaves out here that it does in memory."""
    given = [recipe] if isinstance(recipe, str) or not isinstance(recipe, Sequence) else recipe
    if "auto" not in [one for one in given if isinstance(one, str)]:
        return []
    return [
        "auto: pruned layer by layer, not fitted to the dense model as a whole; prune does both"
    ]


def _streaming(
    checkpoint: Checkpoint, recipe: Any, sparsity: Any, calibration: Any, targets: Any, ignore: Any,
    seed: int, measure: bool, max_memory: int | None,
) -> Streaming:  # fmt: skip
    integer("seed", seed, least=0, most=2**64 - 1)
    boolean("measure", measure)
    if max_memory is not None:
        integer("max_memory", max_memory, least=1)
    source = as_calibration(calibration)
    if not isinstance(source, Calibration):
        raise TypeError(
            "calibration: expected batches or a Calibration of them for a folder, whose blocks see "
            f"what pruned ones give; got {type(source).__name__}"
        )
    recipes = as_recipes(recipe, sparsity, calibrated=True, reconstructs=False)
    refuse_low_rank(recipes)
    fitted = next((one for one in recipes if one.reconstruction is not None), None)
    if fitted is not None:
        raise ValueError(
            f"recipe: reconstruction runs the dense model beside the pruned one; got {fitted!r}. "
            f"{IN_MEMORY}"
        )

    def chosen(model: nn.Module) -> Sequence[Recipe]:
        """The recipes, of which "auto" shares alike where blocks are of one form."""
        return as_recipes(recipe, sparsity, calibrated=True, alike=alike(model), reconstructs=False)

    return streaming_of(
        checkpoint, chosen, source, targets=targets, ignore=ignore, seed=seed, measure=measure,
        max_memory=max_memory,
    )  # fmt: skip


def _require_memory(estimate: Estimate, max_memory: int) -> None:
    if estimate.memory > max_memory:
        raise ValueError(
            f"max_memory: expected at least {estimate.memory:,} bytes, which {estimate.largest} "
            f"takes with the moments of its inputs and a batch; got {max_memory:,}. Smaller "
            "batches take less"
        )
