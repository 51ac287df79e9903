"""The spectra of a network: a row for each weight, as a table, dictionary, data frame or file."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from spectral_engine._util.checks import boolean, file_path
from spectral_engine._util.optional import optional
from spectral_engine._util.text import as_text, plain_text
from spectral_engine.checkpoints.atomic import replacing_file
from spectral_engine.layers.find import Skipped
from spectral_engine.spectral.power_law import PowerLaw
from spectral_engine.spectral.statistics import Statistics

#: The width of a printed table.
WIDTH = 132


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
    singular_values: tuple[float, ...]
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


@dataclass(frozen=True)
class Spectra:
    """What `spectra` found; `print` shows it as a table.

    It is iterated over as its rows, and a row is found by any name of its weight.

    rank, tolerance: as they were asked for
    layers: a row for each weight, in the order of the model or file
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

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write JSON, whole or not at all.

        Args:
            path: the file.
            force: replace the file if it exists.

        Raises:
            FileExistsError: the file exists, and `force` is False.
        """
        with replacing_file(file_path("path", path), force=boolean("force", force)) as file:
            file.write((json.dumps(self.to_dict(), indent=1) + "\n").encode())

    def plot(self, path: str | Path) -> Path:
        """Draw the singular values of every weight, and its ranks, to an image file.

        Args:
            path: with an ending that Matplotlib knows, such as .png or .pdf.

        Returns:
            The path.
        """
        from spectral_engine.spectral.plots import plot_spectra  # noqa: PLC0415  (matplotlib)

        full = np.array([layer.count for layer in self.layers])
        found = [layer.statistics for layer in self.layers]
        ranks = {
            "stable rank": [one.stable_rank for one in found] / full,
            "effective rank": [one.effective_rank for one in found] / full,
            "values with 90 % of the energy": [one.rank_90 for one in found] / full,
        }
        values = {layer.name: layer.known[layer.known > layer.resolution] for layer in self.layers}
        return plot_spectra(values, ranks, file_path("path", path))

    def table(self) -> Table:
        """A row for each weight, for rich; ~ marks an estimate, >= a lower bound."""
        table = Table(
            title=f"{len(self.layers)} weights, {self.seconds:.2f} s",
            caption="~ estimated; sig. 1: ||W||_2; rank %: values that hold 90/95/99 % of ||W||_F^2"
            "; edge: Marchenko-Pastur; alpha: exponent of the tail of sigma^2, KS its distance",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        table.add_column("weight", overflow="fold")
        for name in (
            "shape", "sig. 1", "Frobenius", "stable", "effective", "rank %", "edge", "above",
            "alpha", "KS", "condition",
        ):  # fmt: skip
            table.add_column(name, justify="right", no_wrap=True)
        for layer in self.layers:
            table.add_row(
                plain_text(layer.name), "x".join(map(str, layer.shape)), *_cells(layer.statistics)
            )
        return table

    def __str__(self) -> str:
        left = (plain_text(f"no spectrum: {one.name}, {one.reason}") for one in self.skipped)
        return as_text(WIDTH, self.table(), *left)


def _cells(row: Statistics) -> Iterator[str]:
    def mark(*names: str) -> str:
        return "~" if any(name in row.estimated for name in names) else ""

    yield f"{row.spectral:.4g}"
    yield f"{row.frobenius:.4g}"
    yield f"{row.stable_rank:.1f}"
    yield f"{mark('effective_rank')}{row.effective_rank:.1f}"
    ranks = f"{row.rank_90}/{row.rank_95}/{row.rank_99}"
    yield f"{mark('rank_90', 'rank_95', 'rank_99')}{ranks}"
    yield "-" if row.edge is None else f"{mark('edge')}{row.edge:.3g}"
    yield "-" if row.above_edge is None else f"{mark('above_edge')}{row.above_edge}"
    law = row.power_law
    yield "-" if law is None else f"{mark('power_law')}{law.alpha:.2f}±{law.alpha_error:.2f}"
    yield "-" if law is None else f"{law.distance:.3f}"
    if row.condition is None:
        yield "-"
    else:
        yield f"{'>=' if 'condition' in row.estimated else ''}{row.condition:.2g}"
