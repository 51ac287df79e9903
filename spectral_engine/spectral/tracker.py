"""Spectra through training: recorded every so many steps, saved as one file, drawn and judged."""

import math
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.hooks import RemovableHandle

from spectral_engine._util.checks import file_path, integer, number, saved_state
from spectral_engine.layers.selector import Selector
from spectral_engine.matrix.arrays import largest_magnitude
from spectral_engine.pages.report import Shown
from spectral_engine.pages.sheet import Sheet
from spectral_engine.spectral.compute import (
    MAX_BYTES,
    SpectraOptions,
    for_each_batch,
    known_values,
    load_batch,
    norm_of,
    norm_of_values,
)
from spectral_engine.spectral.evolution import (
    Evolution,
    collapsed_from,
    evolution_sheet,
    stabilised_from,
)
from spectral_engine.spectral.power_law import Values
from spectral_engine.spectral.records import Records, read_state, write_state
from spectral_engine.spectral.statistics import effective_rank
from spectral_engine.spectral.weights import Weight, of_model, require_found

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Up to this min(m, n) a record takes the whole spectrum, and with it the effective rank.
FULL_SIZE = 512
FORMAT = "spectral_engine.SpectrumTracker 1"


class SpectrumTracker(Shown):
    """Records the leading singular values of every weight of a model every `every` steps.

    Without an optimizer, whose steps are counted by a hook, call `.step()` after each step. A
    `with` block records its beginning and, where no error ends it, its end. The training is the
    same as without: a record changes no parameter, buffer, random state or training flag. A weight
    that holds NaN or infinity is recorded as NaN.

    Args:
        model: its weights are those that `spectra` sees; they are looked up anew at each record.
        every: steps between records.
        rank: leading values that are recorded, of each weight at most all that it has.
        optimizer: whose steps are counted inside a `with` block.
        targets, ignore, split, tolerance, max_bytes: as in `spectra`.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.

    >>> import torch, spectral_engine as se
    >>> model = torch.nn.Linear(3, 2)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with se.SpectrumTracker(model, every=2, optimizer=optimizer) as tracker:
    ...     for _ in range(5):
    ...         model(torch.ones(3)).sum().backward()
    ...         optimizer.step()
    >>> tracker.steps.tolist(), tracker.singular_values("weight").shape
    ([0, 2, 4, 5], (4, 2))
    """

    def __init__(
        self,
        model: nn.Module,
        every: int = 100,
        rank: int = 16,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        targets: str | Iterable[str] | None = None,
        ignore: str | Iterable[str] | None = None,
        split: Any = None,
        tolerance: float = 1e-3,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: expected a torch.nn.Module; got {type(model).__name__}")
        if optimizer is not None:
            _require_optimizer(optimizer)
        self.every = integer("every", every, least=1)
        self._options = SpectraOptions(rank, tolerance, full_size=FULL_SIZE, max_bytes=max_bytes)
        self.rank, self.count = self._options.rank, 0
        self._model, self._split = model, split
        self._selector = Selector.of(targets, ignore)
        self._optimizer = optimizer
        self._hook: RemovableHandle | None = None
        weights, _ = of_model(model, self._selector, split)
        require_found(weights, self._selector)
        self._sizes = {weight.name: min(self.rank, weight.count) for weight in weights}
        self._records = Records(self._sizes)

    # Recording

    def __enter__(self) -> Self:
        if self._optimizer is not None:
            self.attach(self._optimizer)
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.detach()
        if kind is None:
            self.finish()

    def start(self) -> None:
        """Record the beginning of training, unless this step is recorded already."""
        steps = self.steps
        if len(steps) == 0 or steps[-1] != self.count:
            self.record()

    def finish(self) -> None:
        """Record the end of training, unless this step is recorded already."""
        self.start()

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Count the steps of this optimizer from now on, and of no other."""
        _require_optimizer(optimizer)
        self.detach()
        self._hook = optimizer.register_step_post_hook(lambda *_: self.step())

    def detach(self) -> None:
        """Count no optimizer's steps any more; without an optimizer, nothing happens."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def step(self) -> None:
        """Count one training step, and record where `every` steps have gone by."""
        self.count += 1
        if self.count % self.every == 0:
            self.record()

    def record(self) -> None:
        """Record the spectra as they are now, at step `count`.

        Raises:
            ValueError: a weight that was there at the start is gone or has another shape.
        """
        row = self._records.new_row()

        def take(weight: Weight, found: tuple[Values, float, float]) -> None:
            self._records.fill(row, weight.name, *found)

        weights, _ = of_model(self._model, self._selector, self._split)
        sizes = {weight.name: min(self.rank, weight.count) for weight in weights}
        for name, size in self._sizes.items():
            if sizes.get(name) != size:
                raise ValueError(f"model: expected weight {name} as it was at first; found none")
        tracked = [weight for weight in weights if weight.name in self._sizes]
        for_each_batch(self._measure, take, tracked, self._options)
        self._records.append(self.count, row)

    def _measure(self, batch: list[Weight]) -> list[tuple[Values, float, float]]:
        """Leading values, Frobenius norm and effective rank (NaN where not known) of each."""
        matrices = load_batch(batch)
        finite = [math.isfinite(largest_magnitude(matrix)) for matrix in matrices]
        nothing = np.full(self._sizes[batch[0].name], np.nan)
        rows: list[tuple[Values, float, float]] = [(nothing, np.nan, np.nan)] * len(batch)
        if any(finite):
            sound = matrices if all(finite) else matrices[torch.tensor(finite)]
            spectra, resolution = known_values(sound, self._options)
            for index, own, values in zip(np.flatnonzero(finite), sound, spectra, strict=True):
                if resolution is None:
                    norm, rank = norm_of(own), np.nan
                else:
                    norm, rank = norm_of_values(values), effective_rank(values)
                rows[index] = (values[: len(nothing)], norm, rank)
        return rows

    # What was recorded

    @property
    def names(self) -> list[str]:
        """The names of the weights."""
        return list(self._sizes)

    @property
    def steps(self) -> NDArray[np.int64]:
        """The steps at which there are records, (T,)."""
        return self._records.steps

    def singular_values(self, name: str) -> Values:
        """The leading singular values of a weight, (T, at most rank); ValueError if unknown."""
        return self._records.read(name, "singular_values")

    def frobenius(self, name: str) -> Values:
        """||W||_F of a weight, (T,)."""
        return self._records.read(name, "frobenius")

    def stable_rank(self, name: str) -> Values:
        """||W||_F^2 / ||W||_2^2 of a weight, (T,); 0 where it is zero."""
        first, norm = self.singular_values(name)[:, 0], self.frobenius(name)
        return np.square(np.divide(norm, first, out=np.zeros_like(norm), where=first != 0.0))

    def effective_rank(self, name: str) -> Values:
        """exp of the entropy of all its singular values, (T,); NaN where min(m, n) > 512."""
        return self._records.read(name, "effective_rank")

    def stabilised(self, tolerance: float = 0.01, window: int = 5) -> dict[str, int | None]:
        """For each weight the step at which its spectrum had stabilised, or None.

        With sigma(t) the recorded values and t counted in records, a record is at rest if
        ||sigma(t) - sigma(t - window)||_2 <= tolerance ||sigma(t)||_2. The spectrum had stabilised
        at the first record that is at rest and is followed by records at rest alone. Over a window
        a slow drift shows that does not show from one record to the next.

        Args:
            tolerance: relative change that counts as none.
            window: records.

        Returns:
            By the name of the weight, the step or None.
        """
        window = integer("window", window, least=1)
        tolerance = number("tolerance", tolerance, least=0.0)
        return {
            name: self._step(stabilised_from(self.singular_values(name), tolerance, window))
            for name in self.names
        }

    def collapsed(self, share: float = 0.1) -> dict[str, int | None]:
        """For each weight the step at which its spectrum had collapsed, or None.

        A record is of a collapsed spectrum if the weight is not finite, if its largest singular
        value is at most 1e-6 of the largest so far, or if its rank is below `share` of the largest
        so far. The rank is the effective one or, where that is not known, the stable one. The
        spectrum had collapsed at the first such record that is followed by such records alone.

        Args:
            share: in (0, 1).

        Returns:
            By the name of the weight, the step or None.
        """
        share = number("share", share, above=0.0, below=1.0, meaning="a share")
        found = {}
        for name in self.names:
            rank = self.effective_rank(name)
            rank = np.where(np.isnan(rank), self.stable_rank(name), rank)
            found[name] = self._step(collapsed_from(self.singular_values(name)[:, 0], rank, share))
        return found

    def _step(self, record: int | None) -> int | None:
        return None if record is None else int(self.steps[record])

    def summary(self) -> str:
        """How many weights, how often, and how many records there are."""
        return (
            f"{len(self._sizes)} weights, rank {self.rank}, every {self.every} steps; "
            f"{len(self._records)} records, step {self.count}"
        )

    def sheet(self) -> Sheet:
        """A row for each weight: its spectrum at first and at last."""
        return evolution_sheet(self.steps, self._evolution(), self.every)

    def _evolution(self) -> dict[str, Evolution]:
        stabilised, collapsed = self.stabilised(), self.collapsed()
        return {
            name: Evolution(
                self.singular_values(name), self.stable_rank(name), stabilised[name],
                collapsed[name],
            )
            for name in self.names
        }  # fmt: skip

    @overload
    def plot(self) -> "Figure": ...

    @overload
    def plot(self, path: str | os.PathLike[str]) -> Path: ...

    def plot(self, path: str | os.PathLike[str] | None = None) -> "Path | Figure":
        """Draw the evolution of the spectra: a panel a weight or, of many, a panel a kind.

        Args:
            path: an image file, with an ending that Matplotlib knows, such as .png or .pdf.

        Returns:
            The path; without one the figure, which a notebook shows.

        Raises:
            ValueError: nothing was recorded yet.
        """
        from spectral_engine.spectral.plots import plot_evolution, written  # noqa: PLC0415

        if len(self._records) == 0:
            raise ValueError("tracker: expected at least one record to plot; got none")
        figure = plot_evolution(self.steps, self._evolution(), self.rank)
        return figure if path is None else written(figure, file_path("path", path))

    # Resuming

    def state_dict(self) -> dict[str, Any]:
        """All that was recorded, as tensors and plain values; `torch.save` can hold it."""
        return {
            "format": FORMAT,
            "every": self.every,
            "rank": self.rank,
            "count": self.count,
            **self._records.to_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a tracker of the same weights and rank left off; `every` stays this one's.

        Args:
            state: what `state_dict` gave.

        Raises:
            TypeError, ValueError: `state` is no tracker's, or one of other weights or another rank;
                the records stay as they were.
        """
        saved_state(state, FORMAT)
        try:
            count = integer("count", state.get("count"), least=0)
        except (TypeError, ValueError) as error:
            raise ValueError(f"state: {error}") from error
        self._records, self.count = Records.of_state(self._sizes, state), count

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all that was recorded to one file, whole or not at all, over an older one.

        Args:
            path: with the ending .npz.

        Raises:
            ValueError: another ending. OSError: the file cannot be written.
        """
        write_state(file_path("path", path), self.state_dict())

    def load(self, path: str | os.PathLike[str]) -> None:
        """`load_state_dict` from a file that `save` wrote.

        Args:
            path: with the ending .npz.

        Raises:
            ValueError, OSError: name what was wrong; the records stay as they were.
        """
        self.load_state_dict(read_state(file_path("path", path)))


def _require_optimizer(optimizer: Any) -> None:
    # Wrappers of optimizers, as accelerators make them, have the hook too.
    if isinstance(optimizer, type) or not hasattr(optimizer, "register_step_post_hook"):
        got = type(optimizer).__name__
        raise TypeError(f"optimizer: expected a torch.optim.Optimizer; got {got}")
