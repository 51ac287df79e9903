"""What fitting a model to the dense one did: one row a block, and one for the whole."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from spectral_engine.pages.report import Report
from spectral_engine.pages.sheet import Cell, Column, Row, Sheet, by_reason, counted, numeral
from spectral_engine.recipe.reconstruction import Reconstruction

#: The name of the row of the model as a whole.
WHOLE = "the whole model"


@dataclass(frozen=True)
class BlockReport:
    """One block that was fitted.

    before, after: the squared error of its outputs relative to the dense block's, on the batches
        that it was not fitted to where there are enough. kept: whether the fit was better, and so
        taken over.
    """

    name: str
    before: float
    after: float
    kept: bool
    seconds: float


@dataclass(repr=False)
class ReconstructReport(Report):
    """What `reconstruct` did; `print` shows it as a table.

    whole: the loss of the model as a whole before and after, where it was trained so: of logits
        the divergence in nats a position, of other outputs the relative squared error.
    left: what was left alone, and why.
    """

    settings: Reconstruction
    blocks: list[BlockReport] = field(default_factory=list)
    whole: BlockReport | None = None
    left: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; numbers that are not finite become None."""
        found = asdict(self)
        for block in [*found["blocks"], *([found["whole"]] if found["whole"] else [])]:
            for key in ("before", "after"):
                if not math.isfinite(block[key]):
                    block[key] = None
        return found

    def line(self) -> str:
        """All in a few words."""
        parts = []
        if kept := [one for one in self.blocks if one.kept]:
            before, after = (
                math.fsum(values) / len(kept)
                for values in ([x.before for x in kept], [x.after for x in kept])
            )
            parts.append(
                f"{counted(len(kept), 'block')} of {len(self.blocks)}, mean squared error "
                f"{before:.4f} before, {after:.4f} after"
            )
        elif self.blocks:
            parts.append("no block, none came nearer")
        if self.whole is not None:
            one = self.whole
            end = f"{one.after:.4f} after" if one.kept else "which did not fall"
            parts.append(f"the whole model, loss {one.before:.4f} before, {end}")
        return f"reconstructed: {'; '.join(parts) or 'nothing'}, {self.seconds:.1f} s"

    def summary(self) -> str:
        """How many blocks, and their error."""
        return self.line()

    def sheet(self) -> Sheet:
        """A row a block."""
        rows = [
            Row(
                one.name or "the model",
                [
                    numeral(one.before),
                    numeral(one.after) if one.kept else Cell("as before", one.before),
                    Cell(f"{one.seconds:.1f}", one.seconds),
                ],
            )
            for one in [*self.blocks, *([self.whole] if self.whole else [])]
        ]
        return Sheet(
            title=repr(self.settings),
            columns=[
                Column("before", "squared error relative to the dense outputs"),
                Column("after", "the same once the block was fitted"),
                Column("s", "time to fit it", extra=True),
            ],
            rows=rows,
            notes=[self.line()],
            listed=by_reason("left alone", self.left.items()),
            name="block",
            caption="errors are squared and relative",
        )
