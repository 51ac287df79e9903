"""Print the ratios of a result file of the speed suite.

    pytest --benchmark --benchmark-json=RESULT.json
    python bench/speed/report.py RESULT.json
    python bench/speed/report.py RESULT.json --csv FILE      the same numbers, to keep

First the targets at 4096 x 4096 in float32 at 90 %, reached or not; then a line for each operation,
dtype and backend at that size and sparsity; then the rest. A field that a row lacks is left blank.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench import tidy

Row = dict[str, Any]
#: For the head of the CSV.
NOTES = {
    "ratio_NAME": "the time over that of a parallel copy, into an existing array (copy) or into a "
    "new one (copy_new)",
    "speedup_NAME": "the time of another implementation over this one's",
    "values": "medians over rounds in which all took turns; ms are milliseconds",
}

SIZE, SPARSITY = 4096, 0.9


@dataclass(frozen=True)
class Target:
    """A bound on one field of the Numba backend's row of an operation."""

    operation: str
    field: str
    bound: float

    @property
    def at_most(self) -> bool:
        """Ratios to a copy are bounded from above, speed-ups from below."""
        return self.field.startswith("ratio_")

    def __str__(self) -> str:
        other = self.field.partition("_")[2]
        if self.at_most:
            return f"{self.operation}: at most {self.bound:g} x the time of {other}"
        return f"{self.operation}: at least {self.bound:g} x faster than {other}"

    def reached(self, measured: float) -> bool:
        """Whether the bound is kept."""
        return measured <= self.bound if self.at_most else measured >= self.bound


TARGETS = (
    Target("sample", "ratio_copy", 2.0),
    Target("randomized", "ratio_copy", 4.0),
    Target("randomized", "ratio_copy_new", 4.0),
    *(
        Target(operation, field, bound)
        for operation in ("sample", "randomized")
        for field, bound in (("speedup_oracle", 20.0), ("speedup_pytorch", 25.0))
    ),
    Target("magnitude", "speedup_l1_unstructured", 10.0),
    Target("magnitude", "speedup_pytorch", 10.0),
)


def rows_of(result: Any) -> list[Row]:
    """The extra_info of each benchmark in a result file of pytest-benchmark.

    Raises:
        ValueError: it is no such file.
    """
    try:
        rows = [benchmark.get("extra_info") for benchmark in result["benchmarks"]]
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            "expected a result file of pytest-benchmark, with a list 'benchmarks'"
        ) from error
    return [row for row in rows if isinstance(row, dict) and row]


def is_main(row: Row) -> bool:
    """Whether a row is of the size and sparsity that come first."""
    return row.get("shape") == [SIZE, SIZE] and row.get("sparsity") in (None, SPARSITY)


def number(row: Row, field: str) -> float | None:
    """A finite number, or None where the row has none."""
    value = row.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def three_digits(value: float | None) -> str:
    """A number to three digits or all of its integer ones; nothing for None."""
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def targets_table(rows: list[Row]) -> Table:
    """What must be reached, what was measured."""
    table = Table(title=f"Targets, {SIZE} x {SIZE} float32, 90 % zeros, Numba", **STYLE)
    for column in ("target", "measured", ""):
        table.add_column(column, justify="right" if column == "measured" else "left")
    wanted = {"backend": "numba", "dtype": "float32"}
    main = [row for row in rows if is_main(row) and row.items() >= wanted.items()]
    for target in TARGETS:
        found = [
            number(row, target.field) for row in main if row.get("operation") == target.operation
        ]
        measured = next((value for value in found if value is not None), None)
        verdict = "not measured"
        if measured is not None:
            verdict = "reached" if target.reached(measured) else "not reached"
        table.add_row(str(target), three_digits(measured), verdict)
    return table


def size_of(row: Row) -> str:
    """The shape, in short."""
    shape = row.get("shape")
    return " x ".join(map(str, shape)) if isinstance(shape, list) else ""


def zeros_of(row: Row) -> str:
    """The sparsity in percent."""
    sparsity = number(row, "sparsity")
    return "" if sparsity is None else f"{100 * sparsity:g}%"


def ratio_of(row: Row, reference: str) -> str:
    """The ratio to a copy, marked where that copy is the fair reference."""
    ratio = three_digits(number(row, f"ratio_{reference}"))
    return f"{ratio}*" if ratio and row.get("reference") == reference else ratio


WORDS: dict[str, Callable[[Row], str]] = {
    "operation": lambda row: str(row.get("operation", "")),
    "size": size_of,
    "dtype": lambda row: str(row.get("dtype", "")),
    "zeros": zeros_of,
    "backend": lambda row: str(row.get("backend", "")),
    "device": lambda row: str(row.get("device", "")),
}
FIGURES: dict[str, Callable[[Row], str]] = {
    "ms": lambda row: three_digits(number(row, "ms")),
    "GB/s": lambda row: three_digits(number(row, "gb_per_s")),
    "/copy": lambda row: ratio_of(row, "copy"),
    "/new": lambda row: ratio_of(row, "copy_new"),
    "oracle/": lambda row: three_digits(number(row, "speedup_oracle")),
    "PyTorch/": lambda row: three_digits(number(row, "speedup_pytorch")),
}
STYLE: dict[str, Any] = {
    "title_justify": "left",
    "box": box.SIMPLE_HEAD,
    "pad_edge": False,
    "collapse_padding": True,
}
NOTE = """\
/copy, /new: the time over that of a parallel copy of the same array into an existing array or into
a new one; * marks the one to hold the operation against. oracle/, PyTorch/: their time over this
one. Each is the median over rounds in which all took turns. GB/s: the bytes that must at least be
moved, over the time. Targets are met by ratios within one run; times vary with the machine's load.
"""


def ratios_table(title: str, rows: list[Row], left_out: tuple[str, ...] = ()) -> Table:
    """A line for each row."""
    table = Table(title=title, **STYLE)
    columns = {name: show for name, show in (WORDS | FIGURES).items() if name not in left_out}
    for name in columns:
        table.add_column(name, justify="left" if name in WORDS else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(show(row)) for show in columns.values()))  # Text: no markup
    return table


def show(rows: list[Row], console: Console) -> None:
    """Print the targets, the rows of the main size and sparsity, and the rest."""
    console.print(targets_table(rows))
    main = [row for row in rows if is_main(row)]
    rest = [row for row in rows if not is_main(row)]
    same = ("device",) if len({row.get("device") for row in rows}) < 2 else ()
    if main:
        title = f"{SIZE} x {SIZE}, 90 % zeros"
        console.print(ratios_table(title, main, ("size", "zeros", *same)))
    if rest:
        console.print(ratios_table("The rest", rest, same))
    console.print(Text(NOTE))


def numbers(rows: list[Row]) -> list[tidy.Row]:
    """The medians and ratios of every row; a variant is an implementation and its matrix."""
    found = []
    for row in rows:
        what = (row.get("backend", ""), row.get("device", ""), row.get("dtype", ""), size_of(row))
        place = (", ".join(map(str, what)), None, str(row.get("operation", "")))
        found += [
            tidy.Row(*place, number(row, "sparsity"), field, value)
            for field in row
            if field == "ms" or field.startswith(("ratio_", "speedup_")) or field.endswith("_ms")
            if (value := number(row, field)) is not None
        ]
    return found


def head(result: Any) -> dict[str, str]:
    """What the file says of the run: the day and the versions."""
    machine = result.get("machine_info") or {}
    versions = {"python": machine.get("python_version", ""), **machine.get("versions", {})}
    return {
        "task": "speed",
        "command": "pytest --benchmark --benchmark-json=RESULT.json",
        "date": str(result.get("datetime", ""))[:10],
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        **NOTES,
    }


def main(
    result: Annotated[
        Path,
        typer.Argument(
            help="File of --benchmark-json.", metavar="RESULT", exists=True, dir_okay=False
        ),
    ],
    csv: Annotated[Path | None, typer.Option(help="Write the numbers to a tidy CSV.")] = None,
) -> None:
    """Print the ratios of a result file of the speed suite."""
    try:
        content = json.loads(result.read_text(encoding="utf-8"))
        rows = rows_of(content)
    except ValueError as error:  # what is not UTF-8 or not JSON comes as one too
        raise typer.BadParameter(f"{result}: {error}", param_hint="RESULT") from error
    # A file or a pipe has no width of its own: wide enough there that nothing is cut.
    console = Console()
    show(rows, console if console.is_terminal else Console(width=120))
    if csv is not None:
        tidy.write(csv, numbers(rows), head(content))


if __name__ == "__main__":
    typer.run(main)
