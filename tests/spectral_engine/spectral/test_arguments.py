"""Arguments of the spectra's functions: progress means one thing, and bad ones are named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import spectral_engine as se

MODEL = nn.ModuleDict({"a": nn.Linear(4, 3), "b": nn.Linear(3, 2)})
CALLS: dict[str, Callable[..., Any]] = {
    "spectra": lambda **options: se.spectra(MODEL, **options),
    "compare": lambda **options: se.compare(MODEL, MODEL, **options),
}


@pytest.mark.parametrize("call", CALLS)
def test_progress_is_called_with_each_row(call: str) -> None:
    """Catches a row that is not reported, or another than the one in the result."""
    rows: list[Any] = []
    found = CALLS[call](progress=rows.append)
    assert sorted(rows, key=lambda row: row.name) == found.layers


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("progress", [True, False])
def test_progress_says_nothing_where_there_is_no_terminal(
    call: str, progress: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a bar in a log, or one on standard output."""
    CALLS[call](progress=progress)
    assert capsys.readouterr() == ("", "")


ODD: dict[str, tuple[Callable[[], object], str]] = {
    "spectra, a method's name": (lambda: se.spectra("magnitude"), "model: expected"),
    "spectra, nothing": (lambda: se.spectra(""), "model: expected"),
    "spectra, a null": (lambda: se.spectra("a\0b.npz"), "model: expected a path"),
    "spectra, an array": (lambda: se.spectra(np.eye(3)), "model: expected"),
    "spectra, its rank": (lambda: se.spectra(MODEL, rank=None), "rank: expected"),
    "spectra, a rank in a tensor": (lambda: se.spectra(MODEL, torch.tensor(3)), "rank: expected"),
    "spectra, its seed": (lambda: se.spectra(MODEL, seed={}), "seed: expected"),
    "spectra, a seed below zero": (lambda: se.spectra(MODEL, seed=-1), "seed: expected"),
    "spectra, its memory": (lambda: se.spectra(MODEL, max_bytes=[None]), "max_bytes: expected"),
    "spectra, progress": (lambda: se.spectra(MODEL, progress=None), "progress: expected"),
    "spectra, tolerance": (lambda: se.spectra(MODEL, tolerance=np.inf), "tolerance: expected"),
    "spectra, full": (lambda: se.spectra(MODEL, full=1), "full: expected"),
    "spectra, full in an array": (lambda: se.spectra(MODEL, full=np.ones(2)), "full: expected"),
    "spectra, split": (lambda: se.spectra(MODEL, split=3), "split: expected"),
    "compare, a name": (lambda: se.compare("wanda", "w.npz"), "dense: expected"),
    "compare, a number": (lambda: se.compare(MODEL, 3), "pruned: expected"),
    "compare, two numbers": (lambda: se.compare(3, 3), "dense: expected"),
    "compare, its rank": (lambda: se.compare(MODEL, MODEL, 0), "rank: expected"),
    "compare, progress": (lambda: se.compare(MODEL, MODEL, progress=1), "progress: expected"),
    "compare, its memory": (lambda: se.compare(MODEL, MODEL, max_bytes=0), "max_bytes: expected"),
    "spectrum, a list": (lambda: se.spectrum([[1.0]]), "weight: expected"),
    "spectrum, integers": (lambda: se.spectrum(np.ones((3, 3), dtype=int)), "weight: expected"),
    "spectrum, a vector": (lambda: se.spectrum(np.ones(3)), "weight: expected"),
    "spectrum, NaN": (lambda: se.spectrum(np.full((3, 3), np.nan)), "weight: expected"),
    "spectrum, no memory": (lambda: se.spectrum(torch.ones(3, 3, device="meta")), "weight: "),
    "spectrum, its rank": (lambda: se.spectrum(np.eye(3), "two"), "rank: expected"),
    "spectrum, its seed": (lambda: se.spectrum(np.eye(3), seed={}), "seed: expected"),
    "spectrum, tolerance": (lambda: se.spectrum(np.eye(3), tolerance="x"), "tolerance: expected"),
    "tracker, every": (lambda: se.SpectrumTracker(MODEL, every="x"), "every: expected"),
    "tracker, optimizer": (lambda: se.SpectrumTracker(MODEL, optimizer=3), "optimizer: expected"),
    "tracker, window": (lambda: se.SpectrumTracker(MODEL).stabilised(0.1, None), "window: "),
    "tracker, share": (lambda: se.SpectrumTracker(MODEL).collapsed("x"), "share: expected"),
}


@pytest.mark.parametrize("odd", ODD)
def test_odd_arguments_are_refused_by_name(odd: str) -> None:
    """Catches a raw error of Python, NumPy or torch, one that names another argument than the
    caller's, and junk that is taken."""
    call, message = ODD[odd]
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        call()
    assert str(caught.value).startswith(message)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    """Catches a missing file called by the argument's name alone."""
    missing = tmp_path / "none.safetensors"
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        se.spectra(missing)
    save_file({"w": torch.eye(3)}, tmp_path / "w.safetensors")
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        se.compare(tmp_path / "w.safetensors", missing)


def test_scalars_of_numpy_are_pythons() -> None:
    """Catches NumPy's integers and floats refused, or kept where JSON cannot take them."""
    found = se.spectra(
        MODEL, np.int64(2), tolerance=np.float32(1e-3), seed=np.uint8(1), max_bytes=np.int32(9999)
    )
    assert type(found.rank) is int
    assert type(found.tolerance) is float
    tracker = se.SpectrumTracker(MODEL, every=np.int64(2), rank=np.int8(2))
    assert type(tracker.state_dict()["every"]) is int
