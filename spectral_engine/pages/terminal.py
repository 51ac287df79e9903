"""A sheet as a table of rich, with the lines that go below it."""

from collections.abc import Iterator

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from spectral_engine._util.text import printable
from spectral_engine.pages.sheet import Column, Row, Sheet

#: Where a name may go on in the next line.
_BREAKS = "./_[:-"
#: The width that a name has at least, where it is that long and there is room, and where not.
_WHOLE, _LEAST = 40, 24


class Name:
    """A name that is broken between its words, never inside one that fits a line."""

    def __init__(self, name: str, least: int = _LEAST) -> None:
        self.name, self.least = printable(name), least

    def parts(self) -> list[str]:
        """The pieces that stay whole: each ends where a line may."""
        found, start = [], 0
        for index, char in enumerate(self.name):
            if char in _BREAKS and index + 1 < len(self.name):
                found.append(self.name[start : index + 1])
                start = index + 1
        return [*found, self.name[start:]]

    def lines(self, width: int) -> Iterator[str]:
        """The name in lines of at most `width`."""
        line = ""
        for part in self.parts():
            if line and len(line) + len(part) > width:
                yield line
                line = ""
            line += part
            while len(line) > width:
                yield line[:width]
                line = line[width:]
        yield line

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in self.lines(max(options.max_width, 1)):
            yield Text(line, no_wrap=True)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        longest = max(map(len, self.parts()), default=1)
        least = len(self.name) if self.least >= _WHOLE else longest
        return Measurement(min(least, self.least), max(len(self.name), 1))


def lines_of(sheet: Sheet) -> Iterator[RenderableType]:
    """What a terminal shows below the table: what is listed, then warnings, then notes."""
    for listed in (*sheet.listed, *sheet.warnings):
        yield Text(printable(listed.line()))
    for note in sheet.notes:
        yield Text(printable(note))


def table_of(sheet: Sheet, console: Console | None = None, width: int | None = None) -> Table:
    """The table, without the columns that a narrow console does without to keep names whole."""
    columns = [column for column in sheet.columns if not column.page_only]
    if console is None or width is None:
        return _table(sheet, columns, least=_LEAST)
    while True:
        table = _table(sheet, columns, least=_WHOLE)
        unbounded = console.options.update(max_width=10_000)
        if Measurement.get(console, unbounded, table).minimum <= width:
            return table
        extra = [column for column in columns if column.extra]
        if not extra:
            return _table(sheet, columns, least=_LEAST)
        columns.remove(extra[-1])


def _table(sheet: Sheet, columns: list[Column], least: int) -> Table:
    """The table of some columns, whose names are at least so wide, if they are that long."""
    table = Table(
        title=Text(printable(sheet.title)), caption=sheet.caption or None, box=box.SIMPLE,
        padding=(0, 1, 0, 0), pad_edge=False, title_justify="left", caption_justify="left",
    )  # fmt: skip
    table.add_column(sheet.name)
    for column in columns:
        words = column.words
        table.add_column(column.title, justify="left" if words else "right", no_wrap=not words)
    places = [list(sheet.columns).index(column) for column in columns]
    for row in sheet.rows:
        table.add_row(Name(row.name, least), *_cells(sheet, row, places))
    if sheet.total is not None:
        table.add_section()
        table.add_row(Name(sheet.total.name), *_cells(sheet, sheet.total, places))
    return table


def _cells(sheet: Sheet, row: Row, places: list[int]) -> list[RenderableType]:
    return [
        Name(row.cells[place].text)
        if sheet.columns[place].words
        else Text(printable(row.cells[place].text))
        for place in places
    ]
