"""Spectra through training: recorded every so many steps, saved as one file, drawn and judged."""

import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.hooks import RemovableHandle

from spectral_engine.checkpoints import CheckpointError, open_checkpoint
from spectral_engine.checkpoints.atomic import replacing_file
from spectral_engine.layers.selector import Selector
from spectral_engine.matrix.arrays import largest_magnitude
from spectral_engine.spectral.compute import (
    MAX_BYTES,
    Options,
    at_least_one,
    known_values,
    load,
    norm_of,
    norm_of_values,
    run,
)
from spectral_engine.spectral.statistics import Values, effective_rank
from spectral_engine.spectral.weights import Weight, of_model, require_found

#: Up to this min(m, n) a record takes the whole spectrum, and with it the effective rank.
FULL_SIZE = 512
QUANTITIES = ("singular_values", "frobenius", "effective_rank")
FORMAT = "spectral_engine.SpectrumTracker 1"


class SpectrumTracker:
    """Records the leading singular values of every weight of a model every `every` steps.

    with se.SpectrumTracker(model, every=100, optimizer=optimizer) as tracker:
        train()
    tracker.plot("spectra.png")

    Without an optimizer, whose steps are counted by a hook, call `.step()` after each step. The
    block records its beginning and, where no error ends it, its end.

    model: its weights are those that `spectra` sees; they are looked up anew at each record
    every: steps between records
    rank: leading values that are recorded, of each weight at most all that it has
    targets, ignore, split, tolerance: see `spectra`

    A weight that holds NaN or infinity is recorded as NaN: training is not stopped by its record.
    """

    def __init__(
        self,
        model: nn.Module,
        every: int = 100,
        rank: int = 16,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        targets: str | list[str] | None = None,
        ignore: str | list[str] | None = None,
        split: Any = None,
        tolerance: float = 1e-3,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: expected a torch.nn.Module; got {type(model).__name__}")
        at_least_one("every", every)
        self._options = Options(rank, tolerance, full_size=FULL_SIZE, max_bytes=max_bytes)
        self.every, self.rank, self.count = every, self._options.rank, 0
        self._model, self._split = model, split
        self._selector = Selector.of(targets, ignore)
        self._optimizer = optimizer
        self._hook: RemovableHandle | None = None
        weights, _ = of_model(model, self._selector, split)
        require_found(weights, self._selector)
        self._sizes = {weight.name: min(self.rank, weight.count) for weight in weights}
        self._steps: list[int] = []
        self._records: dict[str, dict[str, list[Any]]] = {
            name: {quantity: [] for quantity in QUANTITIES} for name in self._sizes
        }

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
        if not self._steps or self._steps[-1] != self.count:
            self.record()

    def finish(self) -> None:
        """Record the end of training, unless this step is recorded already."""
        self.start()

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Count the steps of this optimizer from now on, and of no other."""
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
        found: dict[str, tuple[Values, float, float]] = {}

        def measure(batch: list[Weight]) -> None:
            for weight, row in zip(batch, self._measure(batch), strict=True):
                found[weight.name] = row

        weights, _ = of_model(self._model, self._selector, self._split)
        sizes = {weight.name: min(self.rank, weight.count) for weight in weights}
        for name, size in self._sizes.items():
            if sizes.get(name) != size:
                raise ValueError(f"model: expected weight {name} as it was at first; found none")
        tracked = [weight for weight in weights if weight.name in self._sizes]
        run(measure, tracked, self._options)
        for name, row in found.items():
            for quantity, value in zip(QUANTITIES, row, strict=True):
                self._records[name][quantity].append(value)
        self._steps.append(self.count)

    def _measure(self, batch: list[Weight]) -> list[tuple[Values, float, float]]:
        """Leading values, Frobenius norm and effective rank (NaN where not known) of each."""
        matrices = load(batch)
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
        return np.array(self._steps, dtype=np.int64)

    def singular_values(self, name: str) -> Values:
        """The leading singular values of a weight, (T, at most rank); KeyError if unknown."""
        rows = self._records[name]["singular_values"]
        return np.array(rows, dtype=np.float64).reshape(len(rows), self._sizes[name])

    def frobenius(self, name: str) -> Values:
        """||W||_F of a weight, (T,)."""
        return np.array(self._records[name]["frobenius"], dtype=np.float64)

    def stable_rank(self, name: str) -> Values:
        """||W||_F^2 / ||W||_2^2 of a weight, (T,); 0 where it is zero."""
        first, norm = self.singular_values(name)[:, 0], self.frobenius(name)
        return np.square(np.divide(norm, first, out=np.zeros_like(norm), where=first != 0.0))

    def effective_rank(self, name: str) -> Values:
        """exp of the entropy of all its singular values, (T,); NaN with min(m, n) over 512."""
        return np.array(self._records[name]["effective_rank"], dtype=np.float64)

    def stabilised(self, tolerance: float = 0.01, window: int = 5) -> dict[str, int | None]:
        """For each weight the step at which its spectrum had stabilised, or None.

        That is the first record from which on to the last, of this and of each later one,
        ||sigma(t) - sigma(t - window)||_2 <= tolerance ||sigma(t)||_2, sigma the recorded values
        and t counted in records. Across a window slow drift shows, as it does not from one record
        to the next.
        """
        at_least_one("window", window)
        if not tolerance >= 0.0:
            raise ValueError(f"tolerance: expected a number, 0 or more; got {tolerance!r}")
        found = {}
        for name in self.names:
            sigma = self.singular_values(name)
            change = np.linalg.norm(sigma[window:] - sigma[:-window], axis=1)
            still = change <= tolerance * np.linalg.norm(sigma[window:], axis=1)
            settled = np.concatenate([np.zeros(min(window, len(sigma)), dtype=bool), still])
            found[name] = self._for_good(settled)
        return found

    def collapsed(self, share: float = 0.1) -> dict[str, int | None]:
        """For each weight the step at which its spectrum had collapsed, or None.

        That is the first record from which on to the last the weight is not finite, or its largest
        singular value is at most 1e-6 of what it was at its largest, or its rank is below `share`
        of the largest so far; the rank is the effective one, where it is not known the stable one.
        """
        if not 0.0 < share < 1.0:
            raise ValueError(f"share: expected a number between 0 and 1; got {share!r}")
        found = {}
        for name in self.names:
            first = self.singular_values(name)[:, 0]
            rank = self.effective_rank(name)
            rank = np.where(np.isnan(rank), self.stable_rank(name), rank)
            gone = ~np.isfinite(first) | (first <= 1e-6 * np.fmax.accumulate(first))
            found[name] = self._for_good(gone | (rank < share * np.fmax.accumulate(rank)))
        return found

    def _for_good(self, holds: NDArray[np.bool_]) -> int | None:
        """The step of the first record from which on `holds` is true to the last, or None."""
        fails = np.flatnonzero(~holds)
        start = int(fails[-1]) + 1 if len(fails) else 0
        return self._steps[start] if start < len(holds) else None

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Draw the evolution of every weight's spectrum to an image file."""
        from spectral_engine.spectral.plots import plot_evolution  # noqa: PLC0415  (matplotlib)

        return plot_evolution(self, Path(path))

    # Resuming

    def state_dict(self) -> dict[str, Any]:
        """All that was recorded, as tensors and plain values; `torch.save` can hold it."""
        return {
            "format": FORMAT,
            "every": self.every,
            "rank": self.rank,
            "count": self.count,
            "steps": torch.from_numpy(self.steps),
            "layers": {
                name: {
                    quantity: torch.from_numpy(getattr(self, quantity)(name))
                    for quantity in QUANTITIES
                }
                for name in self.names
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a tracker of the same weights and rank left off; `every` stays this one's.

        Raises:
            ValueError: `state` is no tracker's, or one of other weights or another rank.
        """
        if state.get("format") != FORMAT:
            raise ValueError(f"state: expected format {FORMAT!r}; got {state.get('format')!r}")
        layers, steps = state["layers"], state["steps"].tolist()
        sizes = {name: layer["singular_values"].shape for name, layer in layers.items()}
        expected = {name: (len(steps), size) for name, size in self._sizes.items()}
        for name in {**expected, **sizes}:
            got = tuple(sizes[name]) if name in sizes else None
            if got != expected.get(name):
                raise ValueError(
                    f"state: expected singular values of weight {name} of shape"
                    f" {expected.get(name)}; got {got}"
                )
        self._steps, self.count = steps, int(state["count"])
        self._records = {
            name: {quantity: list(layers[name][quantity].numpy()) for quantity in QUANTITIES}
            for name in self.names
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all that was recorded to one .npz file, whole or not at all, over an older one."""
        target = _npz(path)
        state = self.state_dict()
        layers = state.pop("layers")
        arrays = {"steps": state.pop("steps").numpy()}
        for index, layer in enumerate(layers.values()):
            arrays |= {f"{index}.{quantity}": array.numpy() for quantity, array in layer.items()}
        header = json.dumps({**state, "names": list(layers)}).encode()
        arrays["header"] = np.frombuffer(header, dtype=np.uint8)
        with replacing_file(target, force=True) as file:
            np.savez(file, **arrays)

    def load(self, path: str | os.PathLike[str]) -> None:
        """`load_state_dict` from a file that `save` wrote.

        Raises:
            ValueError, OSError: name what was wrong; the records stay as they were.
        """
        source = _npz(path)
        with open_checkpoint(source) as file:
            try:
                state = json.loads(file.read("header").numpy().tobytes())
                state["steps"] = file.read("steps")
                state["layers"] = {
                    name: {q: file.read(f"{index}.{q}") for q in QUANTITIES}
                    for index, name in enumerate(state.pop("names"))
                }
            except (KeyError, UnicodeDecodeError, json.JSONDecodeError) as error:
                raise CheckpointError(
                    source, "a file that SpectrumTracker.save wrote", str(error)
                ) from error
        self.load_state_dict(state)


def _npz(path: str | os.PathLike[str]) -> Path:
    target = Path(path)
    if target.suffix != ".npz":
        raise ValueError(f"path: expected a name that ends in .npz; got {target.name!r}")
    return target
