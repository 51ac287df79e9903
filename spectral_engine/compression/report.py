"""What compressing did to each weight."""

from dataclasses import asdict, dataclass, field
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from spectral_engine._util.text import as_text, plain_text
from spectral_engine.layers.find import Skipped

WIDTH = 120


@dataclass(frozen=True)
class CompressedWeight:
    """One weight: how it is stored, and what it takes.

    form: "bitmask", "positions" or "deltas" (docs/format.md).
    sparsity: the fraction of entries that are not stored.
    dense_bytes, bytes: before and after, headers aside.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    form: str
    sparsity: float
    dense_bytes: int
    bytes: int


@dataclass
class CompressReport:
    """What `compress` or `compress_file` did; `print` shows it as a table.

    weights: those that are stored in a sparse form.
    skipped: those that stay dense, with the reason.
    unmatched: patterns that matched no weight.
    dense_bytes, bytes: of all tensors, also of those that stay dense, before and after.
    """

    weights: list[CompressedWeight] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    dense_bytes: int = 0
    bytes: int = 0

    @property
    def ratio(self) -> float:
        """Bytes after to bytes before; 1 for what has no bytes."""
        return self.bytes / self.dense_bytes if self.dense_bytes else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**asdict(self), "ratio": self.ratio}

    def table(self) -> Table:
        """One row a weight and a total, for rich."""
        table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column("weight", overflow="fold")
        for name in ("shape", "dtype", "form", "sparsity", "bytes", "of dense"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in self.weights:
            table.add_row(
                plain_text(row.name), "x".join(map(str, row.shape)), row.dtype, row.form,
                f"{row.sparsity:.4f}", f"{row.bytes:,}", f"{row.bytes / row.dense_bytes:.1%}",
            )  # fmt: skip
        table.add_section()
        table.add_row("all tensors", "", "", "", "", f"{self.bytes:,}", f"{self.ratio:.1%}")
        return table

    def __str__(self) -> str:
        return as_text(WIDTH, self.table(), *self._notes())

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.table()
        yield from self._notes()

    def _notes(self) -> list[Any]:
        dense: dict[str, int] = {}
        for one in self.skipped:
            dense[one.reason] = dense.get(one.reason, 0) + 1
        notes = [plain_text(f"dense: {count}, {reason}") for reason, count in dense.items()]
        return [*notes, *(plain_text(f"matched nothing: {one}") for one in self.unmatched)]
