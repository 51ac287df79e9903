"""Measured numbers as a tidy CSV: one number a line, with what it is a number of.

    # command: spectral-engine reproduce width
    # versions: spectral-engine 0.1.0, torch 2.13.0+cpu
    variant,seed,setting,sparsity,metric,value
    "plain, width 25",0,magnitude,0.5,test,0.8601

A blank field does not apply. A blank seed with several seeds in the head means that the value is
over all of them. What did not happen, such as a spectrum's settling, has no line; what is not
defined, such as the correlation with a constant, is nan. Values have five significant digits, whole
numbers all of theirs.
"""

import csv
import io
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from spectral_engine.checkpoints.atomic import replacing_file

DIGITS = 5


class Row(NamedTuple):
    """One number.

    variant: of the network or of its training. setting: how it was pruned; of what belongs to one
    layer, the layer. sparsity: the share of zeros that was asked for.
    """

    variant: str
    seed: int | None
    setting: str
    sparsity: float | None
    metric: str
    value: float


def rounded(value: float) -> str:
    """A number as the file has it."""
    return str(value) if isinstance(value, int) else f"{value:.{DIGITS}g}"


def as_written(rows: Iterable[Row]) -> list[Row]:
    """The rows with their values as the file has them, so that a table of either is the same."""
    return [row._replace(value=_number(rounded(row.value))) for row in rows]


def text(rows: Iterable[Row], head: Mapping[str, str]) -> str:
    """The contents of a file. head: what stands above the columns, a line each.

    Raises:
        ValueError: an entry of the head is longer than its line, or has no name.
    """
    out = io.StringIO()
    for name, said in head.items():
        if not name or ":" in name or "\n" in name + said:
            raise ValueError(
                f"head: expected a name without ':' and one line of text; got {name!r}: {said!r}"
            )
        out.write(f"# {name}: {said}\n")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(Row._fields)
    for row in rows:
        seed = "" if row.seed is None else row.seed
        sparsity = "" if row.sparsity is None else f"{row.sparsity:g}"
        writer.writerow((row.variant, seed, row.setting, sparsity, row.metric, rounded(row.value)))
    return out.getvalue()


def write(path: Path, rows: Iterable[Row], head: Mapping[str, str]) -> None:
    """Write a file, whole or not at all; an old one is replaced."""
    with replacing_file(path, force=True) as file:
        file.write(text(rows, head).encode())


def read(path: Path) -> tuple[dict[str, str], list[Row]]:
    """The head and the rows of a file.

    Raises:
        ValueError: names the file and the line that is not as `write` would have it.
    """
    head: dict[str, str] = {}
    rows: list[Row] = []
    with path.open(encoding="utf-8", newline="") as file:
        lines = file.readlines()
    while lines and lines[0].startswith("# "):
        name, _, said = lines.pop(0)[2:].rstrip("\n").partition(": ")
        head[name] = said
    table = csv.reader(lines)
    if (columns := next(table, [])) != list(Row._fields):
        raise ValueError(f"{path}: expected the columns {', '.join(Row._fields)}; got {columns}")
    for fields in table:
        try:
            variant, seed, setting, sparsity, metric, value = fields
            rows.append(
                Row(
                    variant, int(seed) if seed else None, setting,
                    float(sparsity) if sparsity else None, metric, _number(value),
                )
            )  # fmt: skip
        except ValueError as error:
            raise ValueError(
                f"{path}, line {len(head) + table.line_num}: expected six fields with numbers for "
                f"seed, sparsity and value; got {fields}"
            ) from error
    return head, rows


def _number(field: str) -> float:
    """Whole numbers stay whole, so that a count is shown as one."""
    return int(field) if field.lstrip("-").isdigit() else float(field)


def records(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The metrics of each variant, seed, setting and sparsity together, for tables and figures.

    The four are in a record under their own names; what is blank is an empty text or None there.
    """
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        record = found.setdefault(row[:4], dict(zip(Row._fields[:4], row[:4], strict=True)))
        record[row.metric] = row.value
    return list(found.values())


def over_seeds(rows: Sequence[Row]) -> list[Row]:
    """The mean over the seeds of each number, in place of the numbers."""
    found: dict[tuple[str, str, float | None, str], list[float]] = defaultdict(list)
    for row in rows:
        found[row.variant, row.setting, row.sparsity, row.metric].append(row.value)
    return [
        Row(variant, None, setting, sparsity, metric, math.fsum(values) / len(values))
        for (variant, setting, sparsity, metric), values in found.items()
    ]
