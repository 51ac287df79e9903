"""A task's results as files: a tidy CSV, its tables in Markdown, and its figures as PNG."""

import platform
from collections.abc import Mapping
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
from bench import figures, tidy
from bench.paper.runs.jobs import Settings
from bench.tables import Table
from spectral_engine.checkpoints.atomic import replacing_file

#: Okabe and Ito's colours, told apart by any eye.
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#999999")
MARKERS = "osv^D*Px"


@dataclass
class Result:
    """What a task found: numbers for programs, tables and figures for readers.

    subject: the network with its data, where they are not those of the settings. notes: for the
    head of the CSV, by name, such as "left out".
    """

    task: str
    settings: Settings
    rows: list[tidy.Row]
    tables: list[Table]
    figures: dict[str, Figure]
    subject: str | None = None
    notes: Mapping[str, str] = field(default_factory=dict)

    def write(self) -> list[Path]:
        """Write all of it to the settings' folder; the paths."""
        folder, stem = self.settings.out, self.task
        stem += f"-{self.settings.stem}" if self.subject is None else self.settings.smaller
        folder.mkdir(parents=True, exist_ok=True)
        written = [folder / f"{stem}.csv", folder / f"{stem}.md"]
        head = {
            "task": self.task,
            "subject": self._subject,
            "command": self.settings.command(self.task, network=self.subject is None),
            "seeds": " ".join(map(str, self.settings.runs)),
            **({} if self.subject else {"recipe": listed(vars(self.settings.recipe))}),
            "versions": listed(versions()),
            **self.notes,
        }
        tidy.write(written[0], self.rows, head)
        heading = f"## {self.task}: {self._subject}\n"
        text = "\n".join([heading, *(table.markdown() for table in self.tables)])
        with replacing_file(written[1], force=True) as file:
            file.write(text.encode())
        for name, figure in self.figures.items():
            written.append(folder / f"{stem}{'-' if name else ''}{name}.png")
            figures.save(figure, written[-1])
        return written

    @property
    def _subject(self) -> str:
        """What was trained, or came trained, and on how many images."""
        if self.subject is None:
            return self.settings.label
        subset = self.settings.subset
        return self.subject + (f", {subset:,} training images" if subset else "")


def listed(named: Mapping[str, Any]) -> str:
    """Names and values in one line."""
    return ", ".join(f"{name} {value}" for name, value in named.items())


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
