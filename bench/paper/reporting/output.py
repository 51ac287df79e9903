"""A task's results as files: one JSON, one table in Markdown, and its figures as PNG."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

import spectral_engine as se
from bench.paper.runs.jobs import Settings
from bench.paper.training.store import write_json
from spectral_engine.checkpoints.atomic import replacing_file

#: Okabe and Ito's colours, told apart by any eye.
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#999999")
MARKERS = "osv^D*Px"


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


@dataclass
class Result:
    """What a task found: `summary` for programs, tables and figures for readers.

    subject: the network with its data, where they are not those of the settings.
    """

    task: str
    settings: Settings
    summary: dict[str, Any]
    tables: list[Table]
    figures: dict[str, Figure]
    subject: str | None = None

    def write(self) -> list[Path]:
        """Write all of it to the settings' folder; the paths."""
        folder, stem = self.settings.out, self.task
        stem += f"-{self.settings.stem}" if self.subject is None else self.settings.smaller
        folder.mkdir(parents=True, exist_ok=True)
        written = [folder / f"{stem}.json", folder / f"{stem}.md"]
        record = {
            "task": self.task,
            **self._subject(),
            "seeds": list(self.settings.runs),
            "versions": versions(),
            **self.summary,
        }
        write_json(written[0], record)
        subset = f", {self.settings.subset:,} training images" if self.settings.subset else ""
        subject = f"{self.subject}{subset}" if self.subject else self.settings.label
        heading = f"## {self.task}: {subject}\n"
        text = "\n".join([heading, *(table.markdown() for table in self.tables)])
        with replacing_file(written[1], force=True) as file:
            file.write(text.encode())
        for name, figure in self.figures.items():
            written.append(folder / f"{stem}{'-' if name else ''}{name}.png")
            with replacing_file(written[-1], force=True) as file:
                figure.savefig(file, format="png", dpi=90)
        return written

    def _subject(self) -> dict[str, Any]:
        """What was trained and how, or what came trained."""
        if self.subject is not None:
            return {"subject": self.subject, "settings": self.settings.to_dict()}
        return {"settings": self.settings.to_dict(), "recipe": vars(self.settings.recipe)}


def versions() -> dict[str, str]:
    """Of all that a number depends on."""
    return {
        "spectral-engine": se.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "numba": str(numba.__version__),
        "machine": platform.machine(),
    }


def panels(
    title: str, columns: int, rows: int = 1, width: float = 4.6, height: float = 3.7
) -> tuple[Figure, list[Axes]]:
    """A figure with a row, or several, of axes."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=8)
    return figure, axes


def falling_share(axis: Axes) -> None:
    """Make the x axis that of the share of weights left: falling, logarithmic, in percent."""
    axis.set(xlabel="share of weights left", xscale="log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.invert_xaxis()


def style(index: int) -> dict[str, Any]:
    """Colour, marker and line of the index-th of several series."""
    turn, place = divmod(index, len(COLOURS))
    return {
        "color": COLOURS[place],
        "marker": MARKERS[(place + 3 * turn) % len(MARKERS)],
        "linestyle": ("-", "--", ":", "-.")[turn % 4],
        "markersize": 4,
        "linewidth": 1.2,
    }
