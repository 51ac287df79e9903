"""The spectra of a network: a row for each weight, as a table, dictionary, data frame or file."""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from spectral_engine._util.checks import file_path
from spectral_engine._util.optional import optional
from spectral_engine.layers.find import Skipped
from spectral_engine.pages.report import Report
from spectral_engine.pages.sheet import Cell, Column, Row, Sheet, by_reason, counted, numeral, sizes
from spectral_engine.spectral.power_law import PowerLaw
from spectral_engine.spectral.statistics import Statistics

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class LayerSpectrum:
    """The spectrum of one weight, a row of `Spectra`.

    name: as in a report of `prune`; shared_with: the other names of the same weight
    shape, dtype: of the weight as it is stored
    singular_values: the leading ones, descending, at most `rank`
    statistics: what is read off the spectrum
    known: all values that are known, (k,), descending; where `whole`, k = count
    count: how many singular values the weight has
    resolution: values below it are lost in rounding
    seconds: its share of the time of its batch

    >>> import torch, spectral_engine as se
    >>> model = torch.nn.Linear(3, 2)
    >>> _ = torch.nn.init.eye_(model.weight)
    >>> row = se.spectra(model, progress=False)["weight"]
    >>> row.shape, row.whole, round(row.statistics.stable_rank, 3)
    ((2, 3), True, 2.0)
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    singular_values: tuple[float, ...] = field(repr=False)
    statistics: Statistics
    seconds: float
    known: NDArray[np.float64] = field(repr=False, compare=False)
    count: int
    resolution: float = 0.0
    shared_with: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether all singular values are known."""
        return len(self.known) == self.count

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; what is not known is None."""
        row = asdict(self.statistics)
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "count": self.count,
            "whole": self.whole,
            **row,
            "estimated": list(self.statistics.estimated),
            "singular_values": list(self.singular_values),
            "seconds": self.seconds,
            "shared_with": list(self.shared_with),
        }


@dataclass(frozen=True, repr=False)
class Spectra(Report):
    """What `spectra` found; `print` shows it as a table, `to_html` writes a page.

    It is iterated over as its rows, and a row is found by any name of its weight.

    rank, tolerance: as they were asked for
    layers: a row for each weight, in the order of the model; of a file in natural order
    skipped: what has no spectrum, with the reason
    seconds: the time of the whole run

    >>> import torch, spectral_engine as se
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 2))
    >>> found = se.spectra(model, progress=False)
    >>> [row.name for row in found], len(found["1.weight"].singular_values)
    (['0.weight', '1.weight'], 2)
    """

    rank: int
    tolerance: float
    layers: list[LayerSpectrum]
    skipped: list[Skipped]
    seconds: float

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[LayerSpectrum]:
        return iter(self.layers)

    def __getitem__(self, name: str) -> LayerSpectrum:
        """The row of a weight, by any of its names."""
        for layer in self.layers:
            if name == layer.name or name in layer.shared_with:
                return layer
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "rank": self.rank,
            "tolerance": self.tolerance,
            "layers": [layer.to_dict() for layer in self.layers],
            "skipped": [asdict(skipped) for skipped in self.skipped],
            "seconds": self.seconds,
        }

    def to_pandas(self) -> Any:
        """The rows as a pandas DataFrame.

        Returns:
            A DataFrame, indexed by name; the power law is in columns of its own.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        pandas = optional("to_pandas", "pandas")
        rows = []
        for layer in self.layers:
            row = layer.to_dict()
            law = row.pop("power_law") or dict.fromkeys(PowerLaw.__dataclass_fields__)
            law["power_law_distance"] = law.pop("distance")
            rows.append(row | law)
        return pandas.DataFrame(rows).set_index("name")

    @overload
    def plot(self) -> "Figure": ...

    @overload
    def plot(self, path: str | os.PathLike[str]) -> Path: ...

    def plot(self, path: str | os.PathLike[str] | None = None) -> "Path | Figure":
        """Draw the singular values of every weight, and their ranks, of many by kind of layer.

        Args:
            path: an image file, with an ending that Matplotlib knows, such as .png or .pdf.

        Returns:
            The path; without one the figure, which a notebook shows.
        """
        from spectral_engine.spectral.plots import plot_spectra, written  # noqa: PLC0415

        full = np.array([layer.count for layer in self.layers])
        found = [layer.statistics for layer in self.layers]
        ranks = {
            "stable rank": [one.stable_rank for one in found] / full,
            "effective rank": [one.effective_rank for one in found] / full,
            "values with 90 % of the energy": [one.rank_90 for one in found] / full,
        }
        values = {layer.name: layer.known[layer.known > layer.resolution] for layer in self.layers}
        figure = plot_spectra(values, ranks)
        return figure if path is None else written(figure, file_path("path", path))

    def summary(self) -> str:
        """How many weights, of how many values each, and what was left out."""
        return (
            f"{counted(len(self.layers), 'weight')}, rank {self.rank}, "
            f"{len(self.skipped)} without a spectrum"
        )

    def sheet(self) -> Sheet:
        """A row for each weight; ~ marks an estimate, >= a lower bound."""
        return Sheet(
            title=f"Spectra of {counted(len(self.layers), 'weight')}, {self.seconds:.2f} s",
            facts=[
                ("weights", f"{len(self.layers):,}"),
                ("whole spectra", f"{sum(layer.whole for layer in self.layers):,}"),
                ("leading values of each", f"{self.rank}"),
                ("without a spectrum", f"{len(self.skipped):,}"),
                ("time", f"{self.seconds:.2f} s"),
            ],
            listed=by_reason("no spectrum", ((one.name, one.reason) for one in self.skipped)),
            columns=_COLUMNS,
            rows=[
                Row(
                    layer.name, [sizes(layer.shape), *_cells(layer.statistics)],
                    after=layer.singular_values,
                )
                for layer in self.layers
            ],
            caption="~ estimated; sig. 1: ||W||_2; rank %: values that hold 90/95/99 % of "
            "||W||_F^2; edge: Marchenko-Pastur; alpha: exponent of the tail of sigma^2, KS its "
            "distance",
            curves=("", "singular values"),
        )  # fmt: skip


_COLUMNS = [
    Column("shape"),
    Column("sig. 1", "the largest singular value"),
    Column("Frobenius", "||W||_F", extra=True),
    Column("stable", "stable rank, ||W||_F^2 / ||W||_2^2"),
    Column("effective", "effective rank, exp of the entropy of the spectrum"),
    Column("rank %", "values that hold 90/95/99 % of the energy", extra=True),
    Column("edge", "of Marchenko and Pastur, for noise of the same size", extra=True),
    Column("above", "values above that edge", extra=True),
    Column("alpha", "exponent of the tail of sigma^2", extra=True),
    Column("KS", "distance of the tail from its power law", extra=True),
    Column("condition", "the largest singular value by the least"),
]


def _cells(row: Statistics) -> Iterator[Cell]:
    def cell(value: float | None, form: str, *names: str, sign: str = "~") -> Cell:
        if value is None:
            return Cell("-")
        mark = sign if any(name in row.estimated for name in names) else ""
        return numeral(value, form, mark)

    yield cell(row.spectral, ".4g")
    yield cell(row.frobenius, ".4g")
    yield cell(row.stable_rank, ".1f")
    yield cell(row.effective_rank, ".1f", "effective_rank")
    first = cell(row.rank_90, "d", "rank_90", "rank_95", "rank_99")
    yield Cell(f"{first.text}/{row.rank_95}/{row.rank_99}", first.key)
    yield cell(row.edge, ".3g", "edge")
    yield cell(row.above_edge, "d", "above_edge")
    law = row.power_law
    alpha = cell(None if law is None else law.alpha, ".2f", "power_law")
    yield alpha if law is None else Cell(f"{alpha.text}±{law.alpha_error:.2f}", alpha.key)
    yield cell(None if law is None else law.distance, ".3f")
    yield cell(row.condition, ".2g", "condition", sign=">=")
