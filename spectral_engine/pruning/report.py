"""What pruning did: one row a layer, as a table, a dictionary or a file."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from spectral_engine._util.checks import boolean, file_path
from spectral_engine._util.text import as_text, plain_text
from spectral_engine.checkpoints.atomic import replacing_file
from spectral_engine.layers.find import Skipped
from spectral_engine.matrix.errors import Errors, batch_errors
from spectral_engine.recipe.recipe import Recipe
from spectral_engine.sparsifying.report import Sparsified, SparsifyReport


@dataclass(frozen=True)
class LayerReport:
    """One pruned weight.

    spectral, frobenius and singular_values (mean over the leading values) are relative errors,
    None where they were not asked for. shared_with are the other names of the same weight.
    requested: the sparsity that was asked of this layer, its share of the budget.
    recipe: the index of its recipe among those of the report.
    missed: whether a draw missed its budget; see `SparsifyReport`.
    samples: calibration inputs seen; None without, and then `uncalibrated` says why if some were
    given. few: what was seen, where not every batch reached the layer, or its samples are fewer
    than its input features.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    rank: int | None
    sparsity: float
    nnz: int
    size: int
    c: float
    seconds: float
    spectral: float | None = None
    frobenius: float | None = None
    singular_values: float | None = None
    shared_with: tuple[str, ...] = ()
    samples: int | None = None
    uncalibrated: str | None = None
    few: str | None = None
    requested: float | None = None
    recipe: int = 0
    missed: bool = False


def layer_report(
    name: str, weight: Any, report: SparsifyReport, errors: Errors | None,
    shared_with: Sequence[str] = (), *, recipe: int = 0, samples: int | None = None,
    uncalibrated: str | None = None, few: str | None = None,
) -> LayerReport:  # fmt: skip
    """The row of a weight that `sparsify` reported on."""
    return LayerReport(
        name=name,
        shape=tuple(weight.shape),
        dtype=str(weight.dtype).removeprefix("torch."),
        rank=report.rank,
        sparsity=report.sparsity,
        nnz=report.nnz,
        size=report.size,
        c=report.c,
        seconds=report.seconds,
        spectral=None if errors is None else errors.spectral,
        frobenius=None if errors is None else errors.frobenius,
        singular_values=None if errors is None else errors.mean_singular_value,
        shared_with=tuple(shared_with),
        samples=samples,
        uncalibrated=uncalibrated,
        few=few,
        requested=report.requested,
        recipe=recipe,
        missed=report.missed,
    )


def errors_of(matrices: torch.Tensor, out: Sparsified) -> Errors:
    """The errors of a layer's sparse matrices, (m, n) or (b, m, n), before they are written."""
    return batch_errors(matrices, out.weight) if matrices.ndim == 3 else out.report.errors


@dataclass(frozen=True)
class CalibrationReport:
    """How a pruning was calibrated.

    passes: how often the batches went through the model for moments; 0 for gathered moments.
    asymmetric: whether outputs were fitted to those of the dense model.
    """

    passes: int
    asymmetric: bool = False


@dataclass
class PruneReport:
    """What `prune` did; `print` shows it as a table.

    recipes: as they were carried out; each row says which was its layer's.
    requested: the sparsity asked of all pruned weights together.
    calibration: None without calibration inputs.
    unmatched: patterns that matched no weight. notes: what else a reader should know.
    seconds: the whole run, with reading and writing.
    """

    recipes: Sequence[Recipe]
    requested: float
    seed: int
    calibration: CalibrationReport | None = None
    layers: list[LayerReport] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def title(self) -> str:
        """The recipe, or how many there were."""
        one = len(self.recipes) == 1
        return repr(self.recipes[0]) if one else f"{len(self.recipes)} recipes"

    @property
    def size(self) -> int:
        """Entries of all pruned weights."""
        return sum(layer.size for layer in self.layers)

    @property
    def nnz(self) -> int:
        """Nonzeros of all pruned weights."""
        return sum(layer.nnz for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Fraction of zeros over all pruned weights."""
        return 1.0 - self.nnz / self.size if self.size else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; numbers that are not finite become None."""
        calibration = None if self.calibration is None else asdict(self.calibration)
        found: dict[str, Any] = plain(
            {
                "recipes": [recipe.to_dict() for recipe in self.recipes],
                "requested": self.requested,
                "seed": self.seed,
                "calibration": calibration,
                "layers": [asdict(layer) for layer in self.layers],
                "skipped": [asdict(skipped) for skipped in self.skipped],
                "unmatched": self.unmatched,
                "notes": self.notes,
                "seconds": self.seconds,
                "size": self.size,
                "nnz": self.nnz,
                "sparsity": self.sparsity,
            }
        )
        return found

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write JSON, whole or not at all; an existing file only with `force`."""
        with replacing_file(file_path("path", path), force=boolean("force", force)) as file:
            file.write((json.dumps(self.to_dict(), indent=1) + "\n").encode())

    def table(self) -> Table:
        """One row a layer and a total, for rich; columns without a figure are left out."""
        measured = any(layer.spectral is not None for layer in self.layers)
        ranked = any(layer.rank is not None for layer in self.layers)
        table = Table(
            title=plain_text(f"{self.title}, sparsity {self.requested:.1%}"),
            box=box.SIMPLE,
            padding=(0, 1, 0, 0),
            pad_edge=False,
        )
        table.add_column("weight", overflow="fold")
        errors = ("spectral", "Frobenius", "values") if measured else ()
        for name in ("shape", *(["rank"] if ranked else []), "sparsity", *errors, "ms"):
            table.add_column(name, justify="right", no_wrap=True)
        for layer in self.layers:
            found = (layer.spectral, layer.frobenius, layer.singular_values)
            table.add_row(
                plain_text(layer.name),
                "x".join(map(str, layer.shape)),
                *([str(layer.rank or "-")] if ranked else []),
                f"{layer.sparsity:.4f}",
                *(("-" if e is None else f"{e:.4f}") for e in found if measured),
                f"{1e3 * layer.seconds:.1f}",
            )
        table.add_section()
        table.add_row(
            f"{len(self.layers)} weight" + ("s" if len(self.layers) != 1 else ""),
            f"{self.size}",
            *([""] if ranked else []),
            f"{self.sparsity:.4f}",
            *("" for _ in errors),
            f"{1e3 * self.seconds:.1f}",
        )
        if measured:
            table.caption = "errors are relative; values: leading singular values, mean"
        return table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.table()
        for reason, group in groupby(sorted(self.skipped, key=_reason), key=_reason):
            shown = _shortened([skipped.name for skipped in group])
            yield plain_text(f"left alone, {reason}: {shown}")
        for what, reason_of in (
            ("not calibrated", _why_uncalibrated), ("calibrated on little", _why_few),
        ):  # fmt: skip
            named = sorted((layer for layer in self.layers if reason_of(layer)), key=reason_of)
            for reason, layers in groupby(named, key=reason_of):
                yield plain_text(f"{what}, {reason}: {_shortened([x.name for x in layers])}")
        missed = [layer.name for layer in self.layers if layer.missed]
        if missed:
            yield plain_text(f"missed their budget, scores too far apart: {_shortened(missed)}")
        for pattern in self.unmatched:
            yield plain_text(f"matched no weight: {pattern}")
        for note in self.notes:
            yield plain_text(note)

    def __str__(self) -> str:
        return as_text(100, self)


def _reason(skipped: Skipped) -> str:
    return skipped.reason


def _why_uncalibrated(layer: LayerReport) -> str:
    return layer.uncalibrated or ""


def _why_few(layer: LayerReport) -> str:
    return layer.few or ""


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def plain(value: Any) -> Any:
    """What JSON can hold: Python's numbers, and None in place of those that are not finite."""
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
