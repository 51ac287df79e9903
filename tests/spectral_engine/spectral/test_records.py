"""What a tracker keeps: how much memory it takes, and that a damaged state changes nothing."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import spectral_engine as se
from spectral_engine.spectral.records import QUANTITIES, Records


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    steps=st.lists(st.integers(0, 2**40), max_size=70),
)
def test_what_goes_in_comes_out(sizes: list[int], steps: list[int]) -> None:
    """Catches columns of one weight in another's, rows lost where the buffer grows, and a state
    that is not the records."""
    rng = np.random.default_rng(0)
    named = {f"w{index}": size for index, size in enumerate(sizes)}
    values = {name: rng.random((len(steps), size + 2)) for name, size in named.items()}
    records = Records(named)
    for place, step in enumerate(steps):
        row = records.new_row()
        for name in named:
            own = values[name][place]
            records.fill(row, name, own[:-2], own[-2], own[-1])
        records.append(step, row)
    for held in (records, Records.of_state(named, records.to_state())):
        assert held.steps.tolist() == steps
        assert len(held) == len(steps)
        for name in named:
            parts = (values[name][:, :-2], values[name][:, -2], values[name][:, -1])
            for quantity, part in zip(QUANTITIES, parts, strict=True):
                np.testing.assert_array_equal(held.read(name, quantity), part)


def test_what_is_handed_out_is_a_copy() -> None:
    """Catches an array or a state that changes with later records, or that changes the records."""
    tracker = recorded()
    values, state = tracker.singular_values("weight"), tracker.state_dict()
    before = values.copy()
    values[:] = -1.0
    state["layers"]["weight"]["singular_values"][:] = -1.0
    np.testing.assert_array_equal(tracker.singular_values("weight"), before)


MEMORY = """
import gc
import torch
import spectral_engine as se

def resident():
    for line in open("/proc/self/status"):
        if line.startswith("VmRSS"):
            return int(line.split()[1])

torch.set_num_threads(1)
model = torch.nn.Sequential(*[torch.nn.Linear(64, 64, bias=False) for _ in range(4)])
tracker = se.SpectrumTracker(model, every=1, rank=4)
for _ in range(150):
    tracker.step()
gc.collect()
before = resident()
for _ in range(600):
    tracker.step()
gc.collect()
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_long_training_takes_no_more_than_its_records() -> None:
    """Catches whole spectra kept alive by views of their leading values, and small arrays between
    large temporaries, which keep the heap from shrinking: 9 MB once for these 115 KB."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 3 * 1024


def recorded() -> se.SpectrumTracker:
    torch.manual_seed(0)
    tracker = se.SpectrumTracker(nn.Linear(5, 4), every=1, rank=3)
    for _ in range(3):
        tracker.step()
    return tracker


def put(*keys: str, value: Any) -> Callable[[dict[str, Any]], object]:
    def change(state: dict[str, Any]) -> None:
        for key in keys[:-1]:
            state = state[key]
        state[keys[-1]] = value

    return change


def drop(*keys: str) -> Callable[[dict[str, Any]], object]:
    def change(state: dict[str, Any]) -> None:
        for key in keys[:-1]:
            state = state[key]
        del state[keys[-1]]

    return change


VALUES = ("layers", "weight", "singular_values")
NORMS = ("layers", "weight", "frobenius")
DAMAGE: dict[str, Callable[[dict[str, Any]], object]] = {
    "no format": drop("format"),
    "another format": put("format", value="spectral_engine.Pruner 1"),
    "no count": drop("count"),
    "a count that is none": put("count", value="three"),
    "a count below zero": put("count", value=-1),
    "no steps": drop("steps"),
    "steps in a list": put("steps", value=[1, 2, 3]),
    "steps with fractions": put("steps", value=torch.ones(3)),
    "a step below zero": put("steps", value=torch.tensor([1, -2, 3])),
    "a square of steps": put("steps", value=torch.ones(3, 3, dtype=torch.int64)),
    "too few steps": put("steps", value=torch.tensor([1, 2])),
    "no layers": drop("layers"),
    "layers in a list": put("layers", value=[]),
    "no weight": drop("layers", "weight"),
    "one weight more": put("layers", "more", value={}),
    "a weight that is none": put("layers", "weight", value=3),
    "no values": drop(*VALUES),
    "values of None": put(*VALUES, value=None),
    "values of another rank": put(*VALUES, value=torch.ones(3, 2)),
    "whole numbers": put(*VALUES, value=torch.ones(3, 3, dtype=torch.int64)),
    "complex numbers": put(*VALUES, value=torch.ones(3, 3) * 1j),
    "sparse values": put(*VALUES, value=torch.ones(3, 3).to_sparse()),
    "values without memory": put(*VALUES, value=torch.ones(3, 3, device="meta")),
    "no norms": drop(*NORMS),
    "one norm": put(*NORMS, value=torch.ones(1)),
    "no ranks": drop("layers", "weight", "effective_rank"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_is_refused_and_changes_nothing(damage: str) -> None:
    """Catches a KeyError, and records or a count of which half are from the damaged state."""
    state = recorded().state_dict()
    DAMAGE[damage](state)
    torch.manual_seed(1)
    tracker = se.SpectrumTracker(nn.Linear(5, 4), every=1, rank=3)
    tracker.step()
    before = tracker.state_dict()
    with pytest.raises(ValueError, match=r"state: (count: )?expected"):
        tracker.load_state_dict(state)
    after = tracker.state_dict()
    assert after["count"] == before["count"] == 1
    assert torch.equal(after["steps"], before["steps"])
    for quantity in QUANTITIES:
        assert torch.equal(
            after["layers"]["weight"][quantity], before["layers"]["weight"][quantity]
        )


@pytest.mark.parametrize("state", [None, 3, [], "state", torch.ones(3)])
def test_what_is_no_state_is_refused_by_name(state: Any) -> None:
    """Catches an AttributeError."""
    with pytest.raises(TypeError, match="state: expected a dictionary"):
        recorded().load_state_dict(state)


@pytest.mark.parametrize(
    "header",
    [b"[]", b"3", b"{}", b'{"names": 3}', b'{"names": [[]]}', b"\xff", b'{"names": ["w"]}'],
)
def test_a_damaged_file_is_refused_by_name(header: bytes, tmp_path: Path) -> None:
    """Catches a raw error of a file whose header is JSON, but not a tracker's."""
    steps = np.arange(3)
    np.savez(tmp_path / "r.npz", steps=steps, header=np.frombuffer(header, dtype=np.uint8))
    tracker = recorded()
    with pytest.raises(ValueError, match=r"r\.npz"):
        tracker.load(tmp_path / "r.npz")
    assert tracker.steps.tolist() == [1, 2, 3]
