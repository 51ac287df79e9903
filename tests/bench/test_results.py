"""What lies in bench/results: small, in one form, and its tables made of its numbers."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import tidy
from bench.paper.runs.jobs import Settings
from bench.paper.tasks import (
    efficientnet,
    failures,
    headtohead,
    iterative,
    learning,
    oneshot,
    rewinding,
)  # fmt: skip
from bench.paper.tasks.sweeps import sweep
from bench.quality import results
from bench.tables import Table
from bench.tidy import Row

FOLDER = Path(__file__).parents[2] / "bench" / "results"
FILES = sorted(path for path in FOLDER.rglob("*") if path.is_file())
CSV = [path for path in FILES if path.suffix == ".csv"]
PAPER = [path for path in CSV if path.parent.name == "paper"]
#: Of each task the tables, but for a title that says how many images judge.
TABLES: dict[str, Callable[[list[Row]], list[Table]]] = {
    "oneshot": lambda rows: oneshot.tables(Settings("lenet-300-100"), rows),
    "failures": lambda rows: failures.tables(Settings("mlp"), rows),
    "iterative": iterative.tables,
    "learning": learning.tables,
    "headtohead": headtohead.tables,
    "rewinding": rewinding.tables,
    "efficientnet": efficientnet.tables,
    **dict.fromkeys(
        ("depth", "width", "optimizer", "recurrent", "transformer"),
        lambda rows: sweep.tables(0, rows),
    ),
}


def test_the_results_are_small() -> None:
    """Catches a dump of raw numbers, and figures in all colours."""
    sizes = {path.relative_to(FOLDER): path.stat().st_size for path in FILES}
    assert {path.suffix for path in sizes} == {".csv", ".md", ".png"}
    assert {path: size for path, size in sizes.items() if size > 200_000} == {}
    assert sum(sizes.values()) <= 2_000_000


@pytest.mark.parametrize("path", CSV, ids=lambda path: path.stem)
def test_every_csv_is_tidy(path: Path) -> None:
    """Catches other columns, numbers with more digits than were measured, the same number twice,
    and a file that does not say which command and versions it is of.
    """
    head, rows = tidy.read(path)
    assert {"task", "command", "versions"} <= head.keys()
    assert len(rows) > 0
    assert str(rows) == str(tidy.as_written(rows))
    assert len({row[:5] for row in rows}) == len(rows)
    assert path.read_text() == tidy.text(rows, head)
    for row in rows:
        assert row.metric
        assert row.sparsity is None or 0.0 <= row.sparsity < 1.0
        assert not math.isinf(row.value)


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_the_papers_tables_are_of_its_numbers(path: Path) -> None:
    """Catches a table that was written beside other numbers, and numbers that lack what a table
    states.
    """
    head, rows = tidy.read(path)
    tables = TABLES[head["task"]](rows)
    written = path.with_suffix(".md").read_text()
    assert written.startswith(f"## {head['task']}: {head['subject']}\n")
    assert cells(written) == cells("\n".join(table.markdown() for table in tables))
    assert path.with_suffix(".png").exists()


def test_the_tables_of_quality_are_of_its_numbers() -> None:
    """Catches the same in what is said of every method."""
    summary = results.read(FOLDER / "quality.csv")
    assert (FOLDER / "quality.md").read_text() == results.markdown(summary)
    assert len(summary.cells) > 1000


def cells(text: str) -> list[str]:
    """The lines of tables."""
    return [line for line in text.splitlines() if line.startswith("|")]
