"""What pruning did: one row a layer, as a table, a dictionary or a file."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from spectral_engine.layers.find import Skipped
from spectral_engine.matrix.errors import Errors, batch_errors, leading
from spectral_engine.pages.report import Report
from spectral_engine.pages.sheet import (
    Cell,
    Column,
    Listed,
    Row,
    Sheet,
    by_reason,
    counted,
    in_order,
    numeral,
    sizes,
)
from spectral_engine.recipe.recipe import Recipe
from spectral_engine.reconstruction.report import ReconstructReport
from spectral_engine.sparsifying.report import Sparsified, SparsifyReport


@dataclass(frozen=True)
class LayerReport:
    """One pruned weight.

    spectral, frobenius and singular_values (mean over the leading values) are relative errors,
    None where they were not asked for. shared_with are the other names of the same weight.
    requested: the sparsity that was asked of this layer, its share of the budget.
    recipe: the index of its recipe among those of the report.
    missed: whether a draw missed its budget; see `SparsifyReport`.
    before, after: the leading singular values, descending; empty where they were not measured.
    low_rank: the rank of factors beside the sparse part, whose entries count among `nnz`; 0 where
    none are better, None where the recipe has none. factorless: why it has none all the same.
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
    before: tuple[float, ...] = field(default=(), repr=False)
    after: tuple[float, ...] = field(default=(), repr=False)
    low_rank: int | None = None
    factorless: str | None = None


def layer_report(
    name: str, weight: Any, report: SparsifyReport, errors: Errors | None,
    shared_with: Sequence[str] = (), *, recipe: int = 0, samples: int | None = None,
    uncalibrated: str | None = None, few: str | None = None, factorless: str | None = None,
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
        before=() if errors is None else leading(errors.original),
        after=() if errors is None else leading(errors.sparse),
        low_rank=report.low_rank,
        factorless=factorless,
    )


def errors_of(matrices: torch.Tensor, out: Sparsified) -> Errors:
    """The errors of a layer's sparse matrices, (m, n) or (b, m, n), before they are written."""
    return batch_errors(matrices, out.weight) if matrices.ndim == 3 else out.report.errors


#: Titles of the columns of errors, and what they are.
_ERRORS = (
    ("spectral", "||A - S||_2 / ||A||_2"),
    ("Frobenius", "||A - S||_F / ||A||_F"),
    ("values", "mean relative change of the leading singular values"),
)
_HINT = "Errors and singular values were not measured: measure=True, or --measure, does."
_CAPTION = "errors are relative; values: leading singular values, mean"
#: Where a refit follows the outputs, which a reader might take for a fault.
_REFITTED = "; fitted to outputs, weights may be far from the dense ones and still do as these do"


@dataclass(frozen=True)
class CalibrationReport:
    """How a pruning was calibrated.

    passes: how often the batches went through the model for moments; 0 for gathered moments.
    asymmetric: whether outputs were fitted to those of the dense model.
    """

    passes: int
    asymmetric: bool = False


@dataclass(repr=False)
class PruneReport(Report):
    """What `prune` did; `print` shows it as a table, `to_html` writes a page.

    recipes: as they were carried out; each row says which was its layer's.
    requested: the sparsity asked of all pruned weights together.
    calibration: None without calibration inputs.
    unmatched: patterns that matched no weight. notes: what else a reader should know.
    reconstruction: what fitting the blocks did; None where the recipes do not ask for it.
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
    reconstruction: ReconstructReport | None = None
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
        """Nonzeros of all pruned weights, and entries of factors beside them."""
        return sum(layer.nnz for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Fraction of zeros over all pruned weights."""
        return 1.0 - self.nnz / self.size if self.size else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; numbers that are not finite become None."""
        calibration = None if self.calibration is None else asdict(self.calibration)
        fitted = self.reconstruction
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
                "reconstruction": None if fitted is None else fitted.to_dict(),
                "seconds": self.seconds,
                "size": self.size,
                "nnz": self.nnz,
                "sparsity": self.sparsity,
            }
        )
        return found

    def summary(self) -> str:
        """The recipe, and what came of it."""
        return (
            f"{self.title}, {counted(len(self.layers), 'weight')}, sparsity {self.sparsity:.4f}, "
            f"{len(self.skipped)} left alone"
        )

    def sheet(self) -> Sheet:
        """A row a layer and a total; columns without a figure are left out."""
        measured = any(layer.spectral is not None for layer in self.layers)
        ranked = any(_rank(layer) is not None for layer in self.layers)
        several, fitted = len(self.recipes) > 1, self.reconstruction
        refitted = fitted is not None or any(
            one.refit is not None and one.refit.needs_inputs for one in self.recipes
        )
        which = [
            f"recipe {at}: {one!r}" if several else f"recipe: {one!r}"
            for at, one in enumerate(self.recipes, 1)
        ]
        columns = [
            Column("shape"),
            *([Column("recipe", "its number in the list of recipes", page_only=True)] * several),
            *([Column("rank", "of the low rank in the score, or of the factors")] * ranked),
            Column("asked", "the share of zeros asked for: its part of the budget", page_only=True),
            Column("sparsity", "the share of zeros reached", bar=True),
            Column("kept", "entries that are not zero", page_only=True),
            *([Column(*names, bar=True) for names in _ERRORS] * measured),
            Column("ms", "time to prune it", extra=True),
        ]
        rows = [self._row(layer, several, ranked, measured) for layer in self.layers]
        total = Row(
            counted(len(self.layers), "weight"),
            [
                Cell(f"{self.size:,}"), *([Cell("")] * (several + ranked)),
                numeral(self.requested), numeral(self.sparsity), Cell(f"{self.nnz:,}"),
                *([Cell("")] * 3 * measured), Cell(f"{1e3 * self.seconds:.1f}"),
            ],
        )  # fmt: skip
        return Sheet(
            title=f"{counted(len(self.layers), 'weight')} pruned, {self.sparsity:.1%} zeros",
            facts=self._facts(),
            warnings=self._warnings(),
            listed=by_reason("left alone", ((one.name, one.reason) for one in self.skipped)),
            notes=[*which, *self.notes, *([] if fitted is None else [fitted.line()])],
            columns=columns,
            rows=rows,
            total=total,
            caption=(_CAPTION + _REFITTED * refitted) if measured else "",
            hint="" if measured else _HINT,
        )

    def _row(self, layer: LayerReport, several: bool, ranked: bool, measured: bool) -> Row:
        errors = (layer.spectral, layer.frobenius, layer.singular_values)
        cells = [
            sizes(layer.shape),
            *([numeral(layer.recipe + 1, "d")] * several),
            *([numeral(_rank(layer) or None, "d")] * ranked),
            numeral(layer.requested),
            numeral(layer.sparsity),
            numeral(layer.nnz, ","),
            *(numeral(error) for error in errors if measured),
            numeral(1e3 * layer.seconds, ".1f"),
        ]
        return Row(layer.name, cells, layer.before, layer.after)

    def _facts(self) -> list[tuple[str, str]]:
        facts = [
            ("zeros", f"{self.sparsity:.2%}"),
            ("weights pruned", f"{len(self.layers):,}"),
            ("entries kept", f"{self.nnz:,} of {self.size:,}"),
            ("left alone", f"{len(self.skipped):,}"),
        ]
        found = [layer.spectral for layer in self.layers if layer.spectral is not None]
        values = [x.singular_values for x in self.layers if x.singular_values is not None]
        if found and values:
            facts += [
                ("spectral error, median", f"{statistics.median(found):.3f}"),
                ("change of singular values, median", f"{statistics.median(values):.3f}"),
            ]
        passes = (
            None if self.calibration is None else counted(self.calibration.passes, "pass", "es")
        )
        return [
            *facts,
            ("calibration", "none" if passes is None else passes),
            ("seed", str(self.seed)),
            ("time", f"{self.seconds:.2f} s"),
        ]

    def _warnings(self) -> list[Listed]:
        missed = in_order(layer.name for layer in self.layers if layer.missed)
        unseen = ((x.name, x.uncalibrated) for x in self.layers if x.uncalibrated)
        few = ((x.name, x.few) for x in self.layers if x.few)
        factorless = ((x.name, x.factorless) for x in self.layers if x.factorless)
        return [
            *([Listed("missed their budget", "scores too far apart", missed)] if missed else []),
            *by_reason("not calibrated", unseen),
            *by_reason("calibrated on little", few),
            *by_reason("no factors", factorless),
            *(Listed("matched no weight", "", [pattern]) for pattern in self.unmatched),
        ]


def _rank(layer: LayerReport) -> int | None:
    """Of the factors, or of the score."""
    return layer.rank if layer.low_rank is None else layer.low_rank


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
