"""What pruning did: one row a layer, as a table, a dictionary or a file."""

import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from spectral_engine.checkpoints.atomic import replacing_file
from spectral_engine.errors import Errors
from spectral_engine.layers import Skipped
from spectral_engine.single import SparsifyReport


@dataclass(frozen=True)
class LayerReport:
    """One pruned weight.

    spectral, frobenius and singular_values (mean over the leading values) are relative errors,
    None where they were not asked for. shared_with are the other names of the same weight.
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


def layer_report(
    name: str, weight: Any, report: SparsifyReport, errors: Errors | None,
    shared_with: Sequence[str] = (),
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
    )


@dataclass
class PruneReport:
    """What `prune` did; `print` shows it as a table. `seconds` is the whole run, with reading."""

    method: str
    law: str
    requested: float
    seed: int
    layers: list[LayerReport] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    seconds: float = 0.0

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
        totals = {"size": self.size, "nnz": self.nnz, "sparsity": self.sparsity}
        plain = _plain({**asdict(self), **totals})
        if not isinstance(plain, dict):
            raise TypeError(f"report: expected a dictionary; got {type(plain).__name__}")
        return plain

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write JSON, whole or not at all; an existing file only with `force`."""
        target = Path(path)
        with replacing_file(target, force=force) as file:
            file.write((json.dumps(self.to_dict(), indent=1) + "\n").encode())

    def table(self) -> Table:
        """One row a layer and a total, for rich."""
        measured = any(layer.spectral is not None for layer in self.layers)
        table = Table(title=f"{self.method}, law {self.law}, sparsity {self.requested:.1%}")
        table.add_column("weight", overflow="fold")
        for name in ("shape", "rank", "sparsity"):
            table.add_column(name, justify="right")
        if measured:
            for name in ("spectral", "Frobenius", "sing. values"):
                table.add_column(name, justify="right")
        table.add_column("ms", justify="right")
        for layer in self.layers:
            errors = (layer.spectral, layer.frobenius, layer.singular_values)
            table.add_row(
                layer.name,
                "x".join(map(str, layer.shape)),
                "-" if layer.rank is None else str(layer.rank),
                f"{layer.sparsity:.4f}",
                *(("-" if e is None else f"{e:.4f}") for e in errors if measured),
                f"{1e3 * layer.seconds:.1f}",
            )
        table.add_section()
        blank = ("", "", "") if measured else ()
        total = f"{self.sparsity:.4f}"
        table.add_row(
            f"{len(self.layers)} weights", f"{self.size}", "", total, *blank,
            f"{1e3 * self.seconds:.1f}",
        )  # fmt: skip
        return table

    def __str__(self) -> str:
        out = io.StringIO()
        console = Console(file=out, width=100)
        console.print(self.table())
        for reason in sorted({skipped.reason for skipped in self.skipped}):
            names = [skipped.name for skipped in self.skipped if skipped.reason == reason]
            shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            console.print(f"left alone, {reason}: {shown}", markup=False, highlight=False)
        return out.getvalue().rstrip()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
