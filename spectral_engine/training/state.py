"""A pruner's state, as it is saved, checked in full before anything of a pruner is changed."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from spectral_engine._util.checks import boolean, integer, number, saved_state
from spectral_engine.distributed.shards import here, is_sharded
from spectral_engine.layers.names import named_tensors
from spectral_engine.spectral.tracker import SpectrumTracker
from spectral_engine.training.schedules import Schedule

FORMAT = "spectral_engine.Pruner 1"

#: Step, sparsity asked for, sparsity reached.
Row = tuple[int, float, float]
_ROW = 3
#: The longest value that a message shows.
_LONGEST = 60


@dataclass(frozen=True)
class PrunerState:
    """What a pruner goes on from; see `Pruner` for what each is.

    spectra: the state of its tracker, which checks it itself, or None.
    """

    count: int
    finished: bool
    rounds: list[Row]
    pruned: list[str]
    collapsed: set[str]
    early: dict[str, torch.Tensor] | None
    spectra: Mapping[str, Any] | None


def read_state(
    state: Any,
    schedule: Schedule,
    layers: Collection[str],
    model: nn.Module,
    rewind: int | None,
    tracker: SpectrumTracker | None,
) -> PrunerState:
    """The state in a dictionary, for a pruner of this schedule and model.

    Args:
        state: what `Pruner.state_dict` gave, perhaps damaged.
        layers: the names of all weights that the pruner prunes.
        rewind: the step of which the pruner keeps the weights, or None.
        tracker: the pruner's, or None; not changed.

    Raises:
        TypeError: `state` is no dictionary.
        ValueError: something is missing, of another kind, or of another schedule or model.
    """
    saved_state(state, FORMAT)
    if _pairs(state.get("targets")) != list(schedule.targets.items()):
        raise ValueError("state: expected the targets of this pruner; got others")
    for name, mine in (("early", rewind), ("spectra", tracker)):
        if name not in state or (mine is None) is not (state[name] is None):
            raise ValueError(f"state: expected the {name} of this pruner; got others")
    try:
        count = integer("count", state.get("count"), least=0)
        finished = boolean("finished", state.get("finished"))
        rounds = _rounds(state.get("rounds"), schedule, count)
    except (TypeError, ValueError) as error:
        raise ValueError(f"state: {error}") from error
    pruned = _names(state, "pruned", layers)
    if set(pruned) != (set(layers) if rounds else set()) or len(pruned) != len(set(pruned)):
        raise ValueError(
            f"state: expected {'all' if rounds else 'none'} of this pruner's weights as pruned, "
            f"after {len(rounds)} rounds; got {len(set(pruned))} of {len(layers)}"
        )
    collapsed = set(_names(state, "collapsed", pruned))
    early = state["early"]
    if early is not None and rewind is not None:
        if not isinstance(early, Mapping):
            raise ValueError(f"state: early: expected weights by name; got {_shown(early)}")
        early = _early(early, model, count > rewind)
    spectra = state["spectra"]
    if spectra is not None:
        if not isinstance(spectra, Mapping):
            raise ValueError(f"state: spectra: expected a tracker's state; got {_shown(spectra)}")
        spectra = _records(spectra, 2 * len(rounds) + (finished and bool(rounds)))
    return PrunerState(count, finished, rounds, pruned, collapsed, early, spectra)


def _pairs(targets: Any) -> list[tuple[int, float]] | None:
    """Steps and sparsities, or None where they are none."""
    if not isinstance(targets, list | tuple):
        return None
    try:
        return [(integer("step", step), number("sparsity", value)) for step, value in targets]
    except (TypeError, ValueError):
        return None


def _rounds(rounds: Any, schedule: Schedule, count: int) -> list[Row]:
    """One row for each step of the schedule that has gone by."""
    due = [(step, asked) for step, asked in schedule.targets.items() if step < count]
    if not isinstance(rounds, list | tuple):
        raise TypeError(f"rounds: expected a list; got {type(rounds).__name__}")
    found: list[Row] = []
    for one in rounds:
        if not isinstance(one, list | tuple) or len(one) != _ROW:
            raise TypeError(f"rounds: expected step, sparsity and that reached; got {_shown(one)}")
        step, asked, reached = one
        found.append(
            (
                integer("rounds: step", step, least=0),
                number("rounds: sparsity", asked, least=0.0, below=1.0),
                number("rounds: sparsity reached", reached, least=0.0, most=1.0),
            )
        )
    if [(step, asked) for step, asked, _ in found] != due:
        raise ValueError(
            f"rounds: expected the {len(due)} of the schedule before step {count}; "
            f"got steps {[step for step, _, _ in found][:8]}"
        )
    return found


def _names(state: Mapping[str, Any], key: str, known: Collection[str]) -> list[str]:
    names = state.get(key)
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"state: {key}: expected a list of names; got {_shown(names)}")
    for name in names:
        if name not in known:
            raise ValueError(f"state: expected weights of this model; got {name!r}, {key}")
    return list(names)


def _early(early: Mapping[Any, Any], model: nn.Module, taken: bool) -> dict[str, torch.Tensor]:
    """Early weights of all that the model has, none before the step at which they are kept."""
    own = named_tensors(model)
    expected = own if taken else {}
    for name in (*expected, *early):
        if name not in early or name not in expected:
            less = "weight" if name in expected else "no weight"
            raise ValueError(f"state: early: expected {less} {name!r}; got {len(early)} others")
    for name, value in early.items():
        mine = own[name]
        if (
            not isinstance(value, torch.Tensor)
            or value.is_meta
            or value.layout != mine.layout
            or is_sharded(value) is not is_sharded(mine)
            or value.dtype != mine.dtype
            or value.shape != mine.shape
        ):
            got = (
                f"{value.dtype} {tuple(value.shape)} on {value.device}, {value.layout}"
                if isinstance(value, torch.Tensor)
                else type(value).__name__
            )
            raise ValueError(
                f"state: early: {name}: expected {mine.dtype} {tuple(mine.shape)}; got {got}"
            )
        # A buffer may hold -inf, as a causal mask does.
        if isinstance(mine, nn.Parameter) and not bool(torch.isfinite(here(value)).all()):
            raise ValueError(f"state: early: {name}: expected finite entries; got NaN or infinity")
    return {name: value.to(own[name].device) for name, value in early.items()}


def _records(spectra: Mapping[str, Any], expected: int) -> Mapping[str, Any]:
    """The tracker's state, of as many records as the rounds have made; it checks the rest."""
    steps = spectra.get("steps")
    if isinstance(steps, torch.Tensor) and steps.ndim == 1 and len(steps) != expected:
        raise ValueError(f"state: spectra: expected {expected} records; got {len(steps)}")
    return spectra


def _shown(value: Any) -> str:
    """What a message says of a value: itself where that is short and plain, else its type."""
    plain = value is None or isinstance(value, bool | int | float | str)
    shown = repr(value) if plain else type(value).__name__
    return shown if len(shown) <= _LONGEST else type(value).__name__
