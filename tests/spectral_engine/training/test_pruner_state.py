"""A pruner's saved state: whatever is wrong with it is named, and changes nothing."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import spectral_engine as se

Path = tuple[Any, ...]

#: What takes the place of each part of a state.
JUNK = (
    None, "x", b"x", -1, 3, 0.25, float("nan"), 2.0**70, True, [], ["0.weight"], [[0, 0.5, 0.5]],
    {}, {"0.weight": 1}, {1, 2}, torch.ones(2), torch.ones(16, 20) * torch.nan,
    torch.ones(16, 20, dtype=torch.int64), torch.ones(16, 20, device="meta"),
    torch.ones(16, 20).to_sparse(),
)  # fmt: skip
GONE = object()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 6))


def pruner_of(net: nn.Module) -> se.Pruner:
    schedule = se.Iterative(0.9, 3, every=2, start=1)
    return se.Pruner(net, schedule, "randomized", rewind=1, leading=3, collapse=0.0)


def after(steps: int) -> tuple[nn.Module, se.Pruner]:
    net = network()
    pruner = pruner_of(net)
    for _ in range(steps):
        pruner.step()
    return net, pruner


def paths(part: Any, path: Path = ()) -> Iterator[Path]:
    """Every place in a state, outermost first."""
    if path:
        yield path
    if isinstance(part, dict):
        for key, inner in part.items():
            yield from paths(inner, (*path, key))
    elif isinstance(part, list):
        for index, inner in enumerate(part):
            yield from paths(inner, (*path, index))


def damaged(state: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """A copy with one place taken by another value, or gone."""
    state = copy.deepcopy(state)
    part: Any = state
    for key in path[:-1]:
        part = part[key]
    if value is GONE:
        del part[path[-1]]
    else:
        part[path[-1]] = copy.deepcopy(value)
    return state


def same(a: Any, b: Any) -> bool:
    """Whether two states are the same, entry by entry."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(torch.nan_to_num(a, 7.0), torch.nan_to_num(b, 7.0))
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


@pytest.mark.parametrize("steps", [1, 4, 6])
def test_a_damaged_state_is_refused_whole_or_good_to_go_on_from(steps: int) -> None:
    """Catches a KeyError, at once or some steps later, and a pruner, a tracker or masks of which
    half are from the damaged state: every place of a state is left out and taken by other kinds.
    """
    net, pruner = after(steps)
    state = pruner.state_dict()
    mine = network()
    mine.load_state_dict(net.state_dict())
    other = pruner_of(mine)
    before = copy.deepcopy(other.state_dict())
    cases = [(path, value) for path in paths(state) for value in (GONE, *JUNK)]
    refused = 0
    for path, value in cases:
        message = refusal(other, damaged(state, path, value))
        if message:
            refused += 1
            assert message.startswith("state: "), (path, value, message)
            assert same(other.state_dict(), before), (path, value)
            assert not se.masks(mine), (path, value)
            continue
        while not (other.finished or other.done):  # another value, but one a pruner may have
            other.step()
        other.finish()
        other.to_dict()
        mine = network()
        mine.load_state_dict(net.state_dict())
        other = pruner_of(mine)
    assert refused > 0.9 * len(cases)


def refusal(pruner: se.Pruner, state: dict[str, Any]) -> str:
    """Why a state is refused; "" where it is not."""
    try:
        pruner.load_state_dict(state)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("count",), 2, "rounds: expected the 1 of the schedule before step 2"),
        (("rounds",), [], "rounds: expected the 2 of the schedule before step 4"),
        (("pruned",), [], "expected all of this pruner's weights as pruned"),
        (("pruned",), ["0.weight"], "got 1 of 2"),
        (("collapsed",), ["1.weight"], "expected weights of this model; got '1.weight', collapsed"),
        (("early", "2.bias"), GONE, "early: expected weight '2.bias'"),
        (("early", "3.bias"), torch.ones(6), "early: expected no weight '3.bias'"),
        (("early", "2.bias"), torch.ones(5), r"early: 2\.bias: expected torch.float32 \(6,\)"),
        (("early", "0.bias"), torch.full((16,), torch.inf), "finite entries; got NaN or infinity"),
        (("spectra", "steps"), torch.tensor([1, 1]), "spectra: expected 4 records; got 2"),
        (("finished",), 1, "finished: expected True or False; got 1"),
    ],
)
def test_what_is_wrong_is_named(path: Path, value: Any, message: str) -> None:
    """Catches a state of which a part fits no other: rounds, masks or early weights are lost."""
    net, pruner = after(4)
    with pytest.raises(ValueError, match=f"state: .*{message}"):
        pruner_of(net).load_state_dict(damaged(pruner.state_dict(), path, value))


@pytest.mark.parametrize("state", [None, 3, [], "state", torch.ones(3)])
def test_what_is_no_state_is_refused_by_name(state: Any) -> None:
    """Catches an AttributeError."""
    with pytest.raises(TypeError, match="state: expected a dictionary"):
        pruner_of(network()).load_state_dict(state)
