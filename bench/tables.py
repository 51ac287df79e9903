"""Tables of text: as Markdown for files, and for the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich import box
from rich.table import Table as Shown


@dataclass
class Table:
    """Rows of text under a heading."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)

    def markdown(self) -> str:
        """As GitHub shows it."""
        lines = [self.columns, ["---", *["---:"] * (len(self.columns) - 1)], *self.rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"### {self.title}\n\n{body}\n"

    def shown(self) -> Shown:
        """For a terminal, by rich."""
        table = Shown(title=self.title, box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
        for name in self.columns:
            table.add_column(name, overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        return table
