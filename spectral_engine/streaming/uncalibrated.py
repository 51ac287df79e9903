"""A file or a folder pruned without calibration: what is written counts for another run.

The target grows in the folder of `files/unfinished.py`, and is renamed from there. Files of less
than `draft.NOTE_BYTES` are pruned again instead.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from spectral_engine._util.checks import file_path
from spectral_engine.checkpoints import Checkpoint, draft
from spectral_engine.checkpoints.draft import Draft
from spectral_engine.checkpoints.leftovers import unfinished
from spectral_engine.distributed.groups import sharing_group
from spectral_engine.distributed.owners import errors_of_all
from spectral_engine.pruning.file import FilePlan, Kept, prune_tensors
from spectral_engine.pruning.report import LayerReport, PruneReport
from spectral_engine.streaming.files.fingerprint import fingerprint_of
from spectral_engine.streaming.files.rows import Row, plain_rows, rows_of
from spectral_engine.streaming.files.unfinished import Resume, unfinished_run
from spectral_engine.streaming.folder import versions

#: Makes the target of a pruned file or folder that is complete.
Finish = Callable[[Path], None]


def prune_by_weights(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    recipe: Any,
    sparsity: float | None,
    *,
    resume: Resume,
    finish: Finish | None = None,
    **options: Any,
) -> PruneReport:
    """`prune_file` without calibration.

    Args:
        source, target, recipe, sparsity, resume: see there.
        finish: makes the target of what is pruned, in place of a rename.
        options: others of `prune_tensors`.
    """
    goal = Path(os.path.abspath(file_path("target", target)))
    keep = partial(
        _kept, goal=goal, resume=resume, finish=finish, seed=options["seed"],
        measure=options["measure"],
    )  # fmt: skip
    return prune_tensors(source, target, recipe, sparsity, keep=keep, **options)


@contextmanager
def _kept(
    checkpoint: Checkpoint, plan: FilePlan, *, goal: Path, resume: Resume,
    finish: Finish | None, seed: int, measure: bool,
) -> Iterator[Kept]:  # fmt: skip
    """What an earlier run has written, and where this one goes on; nothing of small files."""
    small = finish is None and _bytes_of(checkpoint) < draft.NOTE_BYTES
    if small and (resume == "auto" or (resume == "never" and not unfinished(goal).exists())):
        yield Kept()
        return
    layers = {name: share for name, (_, share) in plan.assigned.items()}
    fingerprint = fingerprint_of(
        checkpoint.path, plan.recipes, None, versions(), layers=layers, seed=seed, measure=measure
    )
    with unfinished_run(goal, fingerprint, resume) as work:
        rows: dict[str, list[LayerReport]] = {}
        for name, values in work.state.get("rows", {}).items():
            rows[name] = [row.report for row in rows_of(values)]

        def save() -> None:
            done = {name: one for name, one in rows.items() if name in own.names}
            plain = {
                name: plain_rows([Row(0, row) for row in found]) for name, found in done.items()
            }
            work.commit({"draft": own.state, "rows": plain})

        folder = work.path / "draft"
        with errors_of_all(sharing_group()):
            folder.mkdir(exist_ok=True)
            own = Draft(folder / goal.name, work.state.get("draft", {}), save, finish)
        yield Kept(own, rows)


def _bytes_of(checkpoint: Checkpoint) -> int:
    """What the tensors take that torch has a dtype for."""
    found = 0
    for name in checkpoint.names:
        dtype = checkpoint.dtype(name)
        if isinstance(dtype, torch.dtype):
            found += torch.Size(checkpoint.shape(name)).numel() * dtype.itemsize
    return found
