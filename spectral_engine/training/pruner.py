"""Prune in the course of training, as a schedule says, and watch what that does to the spectra."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from spectral_engine._util.checks import boolean, integer, number
from spectral_engine.distributed.shards import here
from spectral_engine.layers.find import find_layers
from spectral_engine.layers.names import named_tensors
from spectral_engine.layers.selector import RecipeSelector
from spectral_engine.layers.storage import memory_of, require_writable
from spectral_engine.masking.model import mask_layers
from spectral_engine.pages.report import Shown
from spectral_engine.pages.sheet import Cell, Column, Listed, Row, Sheet, in_order, numeral
from spectral_engine.pruning.model import as_calibration, prune
from spectral_engine.pruning.plan import splits_of
from spectral_engine.pruning.report import PruneReport
from spectral_engine.recipe.methods import Method
from spectral_engine.recipe.presets import as_recipes
from spectral_engine.recipe.recipe import Recipe
from spectral_engine.spectral.tracker import SpectrumTracker
from spectral_engine.training.rounds import Round, Values, parts_of_round
from spectral_engine.training.schedules import Schedule
from spectral_engine.training.state import FORMAT, read_state

#: A spectrum has collapsed if it keeps less than this share of what it was.
COLLAPSE = 0.5


class SpectrumCollapse(UserWarning):
    """A weight's spectrum has not recovered in the training after a pruning."""


class Pruner(Shown):
    """Prunes a model in training as a schedule says.

    Call `step()` before each step of training. A warning is given, once for each weight, when a
    spectrum does not recover: when, after training, the mean over the leading values of
    min(sigma_i / sigma_i(first), 1) is below `collapse`, where sigma(first) is the spectrum before
    the first pruning; or when it is not finite.

    Args:
        model, recipe, calibration, targets, ignore, masks, measure: as for `prune`. The schedule's
            sparsities take the place of that of the recipe.
        schedule: a `Schedule`: `OneShot`, `Iterative`, `Constant`, `Cubic` or of one's own steps.
        seed: each round draws under a seed of its own, `seed` plus its number, so that one round's
            draws say nothing of the next one's.
        rewind: keep a copy of all weights at this step, and put it back, under the mask, after
            each pruning: the lottery ticket's initial weights with 0 (arXiv 1803.03635), early
            ones with a later step (arXiv 1912.05671). At most the step of the first pruning.
        leading: how many singular values are recorded of each weight; 0 records no spectra.
        collapse: the share of a spectrum under which it has collapsed, in [0, 1].

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 2))
        >>> pruner = se.Pruner(model, se.OneShot(0.75, start=2), "magnitude")
        >>> reports = [pruner.step() for step in range(4)]  # train after each
        >>> [None if report is None else report.nnz for report in reports]
        [None, None, 10, None]
        >>> pruner.finish()
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        recipe: Recipe | Method | str | Sequence[Recipe] = "magnitude",
        *,
        calibration: Any = None,
        targets: str | Iterable[str] | None = None,
        ignore: str | Iterable[str] | None = None,
        seed: int = 0,
        masks: bool = True,
        measure: bool = False,
        rewind: int | None = None,
        leading: int = 16,
        collapse: float = COLLAPSE,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: expected a torch.nn.Module; got {type(model).__name__}")
        if not isinstance(schedule, Schedule):
            raise TypeError(f"schedule: expected a Schedule; got {type(schedule).__name__}")
        integer("leading", leading, least=0)
        if rewind is not None and integer("rewind", rewind, least=0) > schedule.first:
            raise ValueError(
                f"rewind: expected at most the step of the first pruning, {schedule.first}; "
                f"got {rewind}"
            )
        # Now, not once training has come to it.
        as_calibration(calibration)
        recipes = {
            sparsity: as_recipes(
                recipe, sparsity, calibrated=calibration is not None, reconstructs=False
            )
            for sparsity in schedule.targets.values()
        }
        for one in next(iter(recipes.values())):
            if one.low_rank is not None:
                raise ValueError(
                    "recipe: a schedule prunes a weight again and again, and low_rank splits it "
                    f"once; expected low_rank=None; got {one!r}"
                )
        self.schedule, self.count, self.finished = schedule, 0, False
        self._model, self._recipes = model, recipes
        self._options: dict[str, Any] = {
            "calibration": calibration, "targets": targets, "ignore": ignore,
            "masks": boolean("masks", masks), "measure": boolean("measure", measure),
        }  # fmt: skip
        self._seed = integer("seed", seed, least=0, most=2**64 - len(schedule.targets))
        self._rewind, self._early = rewind, None if rewind is None else dict[str, torch.Tensor]()
        self._collapse = number("collapse", collapse, least=0.0, most=1.0, meaning="a share,")
        self._collapsed = set[str]()
        first = next(iter(recipes.values()))
        self._selector = RecipeSelector(first, targets, ignore)
        self._split = splits_of(first)
        self._tracker = (
            SpectrumTracker(model, rank=leading, targets=targets, ignore=ignore, split=self._split)
            if leading
            else None
        )
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
                name: tensor.detach().clone() for name, tensor in named_tensors(self._model).items()
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
            report = prune(
                self._model, self._recipes[sparsity], seed=seed, progress=False, **self._options
            )
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
        own = named_tensors(self._model)
        pruned = {memory_of(own[_parameter(name)]) for name in self._pruned}
        for name, kept in early.items():
            tensor, early_part = here(own[name]), here(kept)
            zero = memory_of(own[name]) in pruned
            tensor.copy_(torch.where(tensor != 0, early_part, 0) if zero else early_part)

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
            Round(step, asked, reached, *parts_of_round(spectra, index))
            for index, (step, asked, reached) in enumerate(self._rounds)
        ]

    @property
    def _last_recipes(self) -> Sequence[Recipe]:
        """The recipes at the last sparsity of the schedule."""
        return list(self._recipes.values())[-1]

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
            "recipe": [one.to_dict() for one in self._last_recipes],
            "collapse": self._collapse,
            "collapsed": sorted(self._collapsed),
            "rounds": [one.to_dict() for one in self.rounds],
        }

    def summary(self) -> str:
        """The schedule's progress."""
        ended = ", finished" if self.finished else ""
        return f"{self._title}, step {self.count}{ended}"

    @property
    def _title(self) -> str:
        names = " or ".join(map(repr, self._last_recipes))
        return f"{names}, {len(self._rounds)} of {len(self.schedule.targets)} rounds"

    def sheet(self) -> Sheet:
        """One row a round: the spectra kept and recovered, the least over the weights."""
        rounds = self.rounds
        facts = [
            ("rounds", f"{len(rounds)} of {len(self.schedule.targets)}"),
            ("step", f"{self.count:,}"),
        ]
        if rounds:
            facts.append(("zeros", f"{rounds[-1].sparsity:.2%}"))
        collapsed = in_order(self._collapsed)
        return Sheet(
            title=self._title,
            name="step",
            facts=facts,
            warnings=[Listed("spectrum does not recover", "", collapsed)] if collapsed else [],
            columns=_COLUMNS,
            rows=[_row(one) for one in rounds],
            caption="kept, recovered: share of the first spectrum after pruning, after training",
        )

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

        Args:
            state: what `state_dict` gave.

        Raises:
            TypeError: `state` is no dictionary.
            ValueError: it is no pruner's, a damaged one, or one of another schedule, rewinding,
                recording or model. Everything is checked first: nothing is changed then.
        """
        found, _ = find_layers(self._model, self._selector, self._split)
        layers = {layer.name: layer for layer in found}
        read = read_state(state, self.schedule, layers, self._model, self._rewind, self._tracker)
        masked = [layers[name] for name in read.pruned] if self._options["masks"] else []
        require_writable((layer.name, layer.parameter) for layer in masked)
        if self._tracker is not None and read.spectra is not None:
            self._tracker.load_state_dict(dict(read.spectra))  # all or nothing, as this
        self.count, self.finished, self._rounds = read.count, read.finished, read.rounds
        self._pruned, self._collapsed, self._early = read.pruned, read.collapsed, read.early
        mask_layers(masked)


_COLUMNS = [
    Column("sparsity", "the share of zeros over all pruned weights", bar=True),
    Column("kept", "share of the first spectrum after pruning, the least of all weights", bar=True),
    Column("recovered", "the same after training", bar=True),
    Column("least of", "the weight that recovered least", words=True),
]


def _row(one: Round) -> Row:
    worst = min(one.recovered, key=lambda name: one.recovered[name], default="")
    kept = min(one.kept.values(), default=None)
    cells = [
        numeral(one.sparsity), numeral(kept, ".1%"), numeral(one.recovered.get(worst), ".1%"),
        Cell(worst),
    ]  # fmt: skip
    return Row(str(one.step), cells)


def _parameter(name: str) -> str:
    """The parameter that a row of a report is (part of): "rnn.weight_ih_l0[reset]" without gate."""
    return name.partition("[")[0]
