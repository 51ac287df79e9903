"""What compressing did to each weight."""

from dataclasses import asdict, dataclass, field
from typing import Any

from spectral_engine.layers.find import Skipped
from spectral_engine.pages.report import Report
from spectral_engine.pages.sheet import (
    Cell,
    Column,
    Listed,
    Row,
    Sheet,
    by_reason,
    counted,
    numeral,
    sizes,
)


@dataclass(frozen=True)
class CompressedWeight:
    """One weight: how it is stored, and what it takes.

    form: "bitmask", "positions" or "deltas" (docs/format.md).
    sparsity: the fraction of entries that are not stored.
    dense_bytes, bytes: before and after, headers aside; of a model's layer with its factors, where
        it has some.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    form: str
    sparsity: float
    dense_bytes: int
    bytes: int


@dataclass(repr=False)
class CompressReport(Report):
    """What `compress` or `compress_file` did; `print` shows it as a table, `to_html` writes a page.

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

    @property
    def _count(self) -> str:
        return counted(len(self.weights), "weight")

    def summary(self) -> str:
        """How many weights, and what is left of their bytes."""
        return f"{self._count}, {self.ratio:.1%} of {self.dense_bytes:,} bytes"

    def sheet(self) -> Sheet:
        """A row a weight, and a total."""
        columns = [
            Column("shape"),
            Column("dtype", words=True, extra=True),
            Column("form", "how it is stored", words=True),
            Column("sparsity", "the share of entries that are not stored", bar=True),
            Column("dense bytes", page_only=True),
            Column("bytes"),
            Column("of dense", "bytes after to bytes before", bar=True),
        ]
        rows = [
            Row(
                row.name,
                [
                    sizes(row.shape), Cell(row.dtype), Cell(row.form), numeral(row.sparsity),
                    numeral(row.dense_bytes, ","), numeral(row.bytes, ","),
                    numeral(row.bytes / row.dense_bytes, ".1%"),
                ],
            )
            for row in self.weights
        ]  # fmt: skip
        total = [
            *([Cell("")] * 4), Cell(f"{self.dense_bytes:,}"), Cell(f"{self.bytes:,}"),
            Cell(f"{self.ratio:.1%}"),
        ]  # fmt: skip
        return Sheet(
            title=f"{self._count} compressed, {self.ratio:.1%} of the dense",
            facts=[
                ("of the dense weights", f"{self.ratio:.1%}"),
                ("before", f"{self.dense_bytes / 1e6:,.2f} MB"),
                ("after", f"{self.bytes / 1e6:,.2f} MB"),
                ("compressed", self._count),
                ("stay dense", f"{len(self.skipped):,}"),
            ],
            warnings=[Listed("matched nothing", "", [one]) for one in self.unmatched],
            listed=by_reason("dense", ((one.name, one.reason) for one in self.skipped)),
            columns=columns,
            rows=rows,
            total=Row("all tensors", total),
        )
