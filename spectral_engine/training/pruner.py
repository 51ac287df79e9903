"""Prune in the course of training, as a schedule says, and watch what that does to the spectra."""

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from torch import nn

from spectral_engine._util.text import as_text
from spectral_engine.layers.find import find_layers, memory_of
from spectral_engine.layers.selector import Selector
from spectral_engine.masking.model import mask_layers
from spectral_engine.pruning.model import prune
from spectral_engine.pruning.options import check_options
from spectral_engine.pruning.report import PruneReport, plain
from spectral_engine.spectral.tracker import SpectrumTracker
from spectral_engine.training.schedules import Schedule, count

FORMAT = "spectral_engine.Pruner 1"
#: A spectrum has collapsed if it keeps less than this share of what it was.
COLLAPSE = 0.5

Values = NDArray[np.float64]


class SpectrumCollapse(UserWarning):
    """A weight's spectrum has not recovered in the training after a pruning."""


@dataclass(frozen=True)
class Round:
    """One pruning. Spectra are the leading singular values of each pruned weight, descending.

    step: when; requested, sparsity: asked for and reached, over all pruned weights
    before, after: spectra around the pruning; retrained: those before the next pruning, or at
    `finish`; empty until then, and all three where spectra are not recorded
    kept: the share of the spectrum before the first pruning that is there after this one, the
    mean of min(sigma_i / sigma_i(first), 1); recovered: the same after training
    """

    step: int
    requested: float
    sparsity: float
    before: dict[str, Values] = field(default_factory=dict)
    after: dict[str, Values] = field(default_factory=dict)
    retrained: dict[str, Values] = field(default_factory=dict)
    kept: dict[str, float] = field(default_factory=dict)
    recovered: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; numbers that are not finite become None."""
        spectra = {part: getattr(self, part) for part in ("before", "after", "retrained")}
        numbers = {"step": self.step, "requested": self.requested, "sparsity": self.sparsity}
        shares = {"kept": self.kept, "recovered": self.recovered}
        return {name: plain(value) for name, value in {**numbers, **spectra, **shares}.items()}


class Pruner:
    """Prunes a model in training as a schedule says.

    pruner = se.Pruner(model, se.Iterative(0.95, rounds=5, every=4), method="magnitude")
    for epoch in range(24):
        pruner.step()
        train_one_epoch(model)
    pruner.finish()
    print(pruner)

    Call `step()` before each step of training. A warning is given, once for each weight, when a
    spectrum does not recover: when, after training, the mean over the leading values of
    min(sigma_i / sigma_i(first), 1) is below `collapse`, where sigma(first) is the spectrum before
    the first pruning; or when it is not finite.

    Args:
        model, method, options: those of `prune`. Each round draws under a seed of its own,
            `seed` plus its number, so that one round's draws say nothing of the next one's.
        schedule: a `Schedule`: `OneShot`, `Iterative`, `Constant`, `Cubic` or of one's own steps.
        rewind: keep a copy of all weights at this step, and put it back, under the mask, after
            each pruning: the lottery ticket's initial weights with 0 (arXiv 1803.03635), early
            ones with a later step (arXiv 1912.05671). At most the step of the first pruning.
        leading: how many singular values are recorded of each weight; 0 records no spectra.
        collapse: see above.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        method: str = "magnitude",
        *,
        rewind: int | None = None,
        leading: int = 16,
        collapse: float = COLLAPSE,
        **options: Any,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: expected a torch.nn.Module; got {type(model).__name__}")
        if not isinstance(schedule, Schedule):
            raise TypeError(f"schedule: expected a Schedule; got {type(schedule).__name__}")
        known = inspect.signature(prune).parameters.keys() - {"model", "method", "sparsity"}
        for name in options:
            if name not in known:
                raise TypeError(f"{name}: expected an option of prune; got one that it has not")
        count("leading", leading, least=0)
        if isinstance(collapse, bool) or not isinstance(collapse, int | float):
            raise TypeError(f"collapse: expected a number; got {collapse!r}")
        if not 0.0 <= collapse <= 1.0:
            raise ValueError(f"collapse: expected a share, in [0, 1]; got {collapse!r}")
        if rewind is not None:
            count("rewind", rewind, least=0)
            if rewind > schedule.first:
                raise ValueError(
                    f"rewind: expected at most the step of the first pruning, {schedule.first}; "
                    f"got {rewind}"
                )
        for sparsity in schedule.targets.values():  # now, not once training has come to it
            check_options(method, sparsity, **options)
        self.schedule, self.count, self.finished = schedule, 0, False
        self._model, self._method, self._options = model, method, options
        self._seed = options.pop("seed", 0)
        count("seed", self._seed, least=0)
        self._rewind, self._early = rewind, None if rewind is None else dict[str, torch.Tensor]()
        self._collapse, self._collapsed = collapse, set[str]()
        self._tracker = (
            SpectrumTracker(model, rank=leading, targets=options.get("targets"),
                            ignore=options.get("ignore"), split=options.get("split"))
            if leading else None
        )  # fmt: skip
        self._rounds: list[tuple[int, float, float]] = []
        self._pruned: list[str] = []

    @property
    def done(self) -> bool:
        """Whether no pruning is to come."""
        return self.count > self.schedule.last

    def step(self) -> PruneReport | None:
        """Prune if it is time, before a step of training; the report, or None.

        Raises:
            RuntimeError: after `finish`. TypeError, ValueError: those of `prune`; nothing is
                changed or counted then.
        """
        if self.finished:
            raise RuntimeError("pruner: expected no step after finish; make a new one")
        if self.count == self._rewind:
            self._early = {
                name: tensor.detach().clone()
                for name, tensor in self._model.state_dict().items()
                if isinstance(tensor, torch.Tensor)  # other extra state is not weights
            }
        target = self.schedule.targets.get(self.count)
        report = None if target is None else self._prune(target)
        self.count += 1
        return report

    def finish(self) -> None:
        """Record the spectra after the last training; for the second time, nothing."""
        if not self.finished and self._rounds:
            self._record()
            self._judge()
        self.finished = True

    def _prune(self, sparsity: float) -> PruneReport:
        earlier = None if self._tracker is None else self._tracker.state_dict()
        self._record()
        seed = self._seed + len(self._rounds)
        try:
            report = prune(self._model, self._method, sparsity, seed=seed, **self._options)
        except BaseException:
            if self._tracker is not None and earlier is not None:
                self._tracker.load_state_dict(earlier)
            raise
        self._pruned = [layer.name for layer in report.layers]
        self._judge()
        self._record()
        self._rounds.append((self.count, sparsity, report.sparsity))
        if self._early is not None:
            self._put_back(self._early)
        return report

    def _record(self) -> None:
        if self._tracker is not None:
            self._tracker.count = self.count
            self._tracker.record()

    def _put_back(self, early: Mapping[str, torch.Tensor]) -> None:
        """Early weights, except where pruning has just made a zero; under all names of a weight."""
        state = self._model.state_dict(keep_vars=True)
        pruned = {memory_of(state[_parameter(name)]) for name in self._pruned}
        for name, kept in early.items():
            tensor = state[name].detach()
            zero = memory_of(state[name]) in pruned
            tensor.copy_(torch.where(tensor != 0, kept, 0) if zero else kept)

    def _judge(self) -> None:
        """Warn of the spectra that the training since the last pruning has not brought back."""
        if not self._rounds:
            return
        last = self.rounds[-1]
        for name, share in last.recovered.items():
            if not share >= self._collapse and name not in self._collapsed:
                self._collapsed.add(name)
                warnings.warn(
                    f"the spectrum of {name} does not recover: after training at sparsity "
                    f"{last.sparsity:.4g} it has {share:.1%} of what it was before the first "
                    f"pruning, under {self._collapse:.0%}",
                    SpectrumCollapse,
                    stacklevel=4,
                )

    # What was done

    @property
    def rounds(self) -> list[Round]:
        """The prunings so far."""
        spectra = {name: self._spectra(name) for name in self._names()}
        return [
            Round(step, asked, reached, *_parts(spectra, index))
            for index, (step, asked, reached) in enumerate(self._rounds)
        ]

    def _names(self) -> list[str]:
        """The weights that are both pruned and recorded."""
        recorded = [] if self._tracker is None else self._tracker.names
        return [name for name in recorded if name in set(self._pruned)]

    def _spectra(self, name: str) -> Values:
        if self._tracker is None:
            raise RuntimeError("pruner: expected recorded spectra; got leading=0")
        return self._tracker.singular_values(name)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "method": self._method,
            "collapse": self._collapse,
            "collapsed": sorted(self._collapsed),
            "rounds": [one.to_dict() for one in self.rounds],
        }

    def table(self) -> Table:
        """One row a round, for rich: the spectra kept and recovered, the least over the weights."""
        table = Table(
            title=f"{self._method}, {len(self._rounds)} of {len(self.schedule.targets)} rounds",
            caption="kept, recovered: share of the first spectrum after pruning, after training",
            box=box.SIMPLE,
        )
        for name in ("step", "sparsity", "kept", "recovered", "least of"):
            table.add_column(name, justify="right", no_wrap=name != "least of")
        for one in self.rounds:
            worst = min(one.recovered, key=lambda name: one.recovered[name], default="")
            table.add_row(
                str(one.step),
                f"{one.sparsity:.4f}",
                f"{min(one.kept.values()):.1%}" if one.kept else "-",
                f"{one.recovered[worst]:.1%}" if worst else "-",
                worst,
            )
        return table

    def __str__(self) -> str:
        return as_text(100, self.table())

    # Resuming

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on, as tensors and plain values; the model is saved apart."""
        return {
            "format": FORMAT,
            "count": self.count,
            "finished": self.finished,
            "targets": [list(target) for target in self.schedule.targets.items()],
            "rounds": [list(one) for one in self._rounds],
            "pruned": list(self._pruned),
            "collapsed": sorted(self._collapsed),
            "early": self._early,
            "spectra": None if self._tracker is None else self._tracker.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another left off, with the model's own state loaded already.

        The masks are made anew from the zeros of the pruned weights.

        Raises:
            ValueError: `state` is no pruner's, or one of another schedule, rewinding, recording or
                model; nothing is changed then.
        """
        if state.get("format") != FORMAT:
            raise ValueError(f"state: expected format {FORMAT!r}; got {state.get('format')!r}")
        for name, mine in (
            ("targets", [list(target) for target in self.schedule.targets.items()]),
            ("early", self._early),
            ("spectra", self._tracker),
        ):
            same = mine == state[name] if name == "targets" else (mine is None) is (
                state[name] is None
            )  # fmt: skip
            if not same:
                raise ValueError(f"state: expected the {name} of this pruner; got others")
        targets, ignore, split = map(self._options.get, ("targets", "ignore", "split"))
        found, _ = find_layers(self._model, Selector.of(targets, ignore), split)
        layers = {layer.name: layer for layer in found}
        for name in state["pruned"]:
            if name not in layers:
                raise ValueError(f"state: expected weights of this model; got {name!r}, pruned")
        if self._tracker is not None:
            self._tracker.load_state_dict(state["spectra"])
        self.count, self.finished = int(state["count"]), bool(state["finished"])
        self._rounds = [(int(step), float(a), float(b)) for step, a, b in state["rounds"]]
        self._pruned, self._collapsed = list(state["pruned"]), set(state["collapsed"])
        self._early = state["early"]
        if self._options.get("masks", True):
            mask_layers([layers[name] for name in self._pruned])


def _parts(
    spectra: Mapping[str, Values], index: int
) -> tuple[dict[str, Values], dict[str, Values], dict[str, Values],
           dict[str, float], dict[str, float]]:  # fmt: skip
    """Round `index` of the records: before, after, retrained, kept, recovered."""
    before, after, retrained = (
        {name: values[2 * index + at] for name, values in spectra.items()
         if 2 * index + at < len(values)}
        for at in range(3)
    )  # fmt: skip
    kept, recovered = (
        {name: _share(found[name], spectra[name][0]) for name in found}
        for found in (after, retrained)
    )
    return before, after, retrained, kept, recovered


def _share(values: Values, first: Values) -> float:
    """Mean of min(sigma_i / sigma_i(first), 1) over the values that were not zero; 1 of none."""
    there = first > 0.0
    return float(np.minimum(values[there] / first[there], 1.0).mean()) if there.any() else 1.0


def _parameter(name: str) -> str:
    """The parameter that a row of a report is (part of): "rnn.weight_ih_l0[reset]" without gate."""
    return name.partition("[")[0]
