"""Wrong kinds of every argument: each is refused by its name."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import spectral_engine as se

W = torch.ones(6, 8).tril() + torch.eye(6, 8)
#: No argument below can be any of these.
JUNK: dict[str, Any] = {
    "bytes": b"x", "set of numbers": {1, 2}, "list of numbers": [1], "pair": (1, 2),
    "negative": -1.5, "nan": float("nan"), "infinity": float("inf"), "complex": 1j,
    "array of no dimensions": np.array(0.5), "array": np.ones(3), "objects": np.array([None, 1]),
    "structured": np.zeros(3, dtype=[("a", "f4")]), "dates": np.array(["2020"], dtype="M8[D]"),
    "scalar tensor": torch.tensor(0.5), "integer tensor": torch.tensor(3),
    "tensor": torch.ones(3), "meta": torch.ones(6, 8, device="meta"),
    "boolean": torch.ones(6, 8, dtype=torch.bool), "uint16": torch.ones(6, 8, dtype=torch.uint16),
    "float8": torch.ones(6, 8).to(torch.float8_e4m3fn), "complex numbers": torch.ones(6, 8) * 1j,
    "type": int, "object": object(), "slice": slice(1), "ellipsis": ..., "dtype": torch.float32,
    "null byte": "a\0b", "generator": torch.Generator(),
}  # fmt: skip


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))


def tracker() -> se.SpectrumTracker:
    return se.SpectrumTracker(network())


def pruner() -> se.Pruner:
    return se.Pruner(network(), se.OneShot(0.5))


#: Argument, and a call with a value of it.
CALLS: list[tuple[str, Callable[[Any], Any]]] = [
    ("weight", lambda x: se.sparsify(x, "magnitude", 0.5)),
    ("recipe", lambda x: se.sparsify(W, x)),
    ("sparsity", lambda x: se.sparsify(W, "magnitude", x)),
    ("inputs", lambda x: se.sparsify(W, "wanda", 0.5, inputs=x)),
    ("seed", lambda x: se.sparsify(W, "magnitude", 0.5, seed=x)),
    ("stream", lambda x: se.sparsify(W, "magnitude", 0.5, stream=x)),
    ("weight", lambda x: se.spectrum(x, 2)),
    ("rank", lambda x: se.spectrum(W, x)),
    ("seed", lambda x: se.spectrum(W, 2, seed=x)),
    ("stream", lambda x: se.spectrum(W, 2, stream=x)),
    ("original", lambda x: se.errors(x, W)),
    ("sparse", lambda x: se.errors(W, x)),
    ("rank", lambda x: se.errors(W, W, x)),
    ("method", lambda x: se.errors(W, W, method=x)),
    ("model", se.prune),
    ("targets", lambda x: se.prune(network(), targets=x)),
    ("ignore", lambda x: se.prune(network(), ignore=[x])),
    ("masks", lambda x: se.prune(network(), masks=x)),
    ("measure", lambda x: se.prune(network(), measure=x)),
    ("source", lambda x: se.prune_file(x, "out.safetensors")),
    ("model", se.masks),
    ("model", se.mask_zeros),
    ("model", se.finalize),
    ("kept", lambda x: se.apply_masks(network(), x)),
    ("model", se.spectra),
    ("split", lambda x: se.spectra(network(), split={x if x.__hash__ else 1: ("a", "b")})),
    ("schedule", lambda x: se.Pruner(network(), x)),
    ("calibration", lambda x: se.Pruner(network(), se.OneShot(0.5), "wanda", calibration=x)),
    ("seed", lambda x: se.Pruner(network(), se.OneShot(0.5), seed=x)),
    ("sparsity", se.OneShot),
    ("start", lambda x: se.OneShot(0.5, start=x)),
    ("rounds", lambda x: se.Iterative(0.5, rounds=x)),
    ("end", lambda x: se.Constant(0.5, end=x)),
    ("every", lambda x: se.Cubic(0.5, end=4, every=x)),
    ("targets", se.Schedule),
    ("kind", lambda x: se.register_layer(x, lambda module: [])),
    ("views", lambda x: se.register_layer("no.Such", x)),
    ("parameter", se.View),
    ("of", lambda x: se.View("weight", x)),
    ("batch", lambda x: se.View("weight", batch=x)),
    ("law", lambda x: se.Randomized(law=x)),
    ("rank", lambda x: se.Principal(rank=x)),
    ("shared", lambda x: se.Pattern("16x16", shared=x)),
    ("method", se.Recipe),
    ("recipes", lambda x: se.save_recipes(x, "recipe.toml")),
    ("path", lambda x: se.save_recipes([se.Recipe()], x)),
    ("path", se.load_recipes),
    ("path", lambda x: tracker().save(x)),
    ("path", lambda x: tracker().load(x)),
    ("every", lambda x: se.SpectrumTracker(network(), every=x)),
    ("window", lambda x: tracker().stabilised(window=x)),
    ("optimizer", lambda x: tracker().attach(x)),
    ("name", lambda x: tracker().frobenius(x)),
    ("state", lambda x: tracker().load_state_dict({"format": x})),
    ("state", lambda x: pruner().load_state_dict({"format": x})),
    ("path", lambda x: se.spectra(network(), 2, progress=False).plot(x)),
    ("parameter", lambda x: se.Mask.of(x, torch.ones(6, 8, dtype=torch.bool))),
    ("kept", lambda x: se.Mask.of(nn.Parameter(torch.ones(3, 5)), x)),
    ("source", lambda x: se.compress_file(x, "out.safetensors")),
    ("target", lambda x: se.compress_file("in.safetensors", x)),
    ("source", lambda x: se.decompress_file(x, "out.safetensors")),
    ("target", lambda x: se.decompress_file("in.safetensors", x)),
    ("name", se.preset),
    ("calibrated", lambda x: se.preset("auto", calibrated=x)),
    ("shape", se.Pattern),
    ("targets", lambda x: se.Schedule({0: x})),
    ("split", lambda x: se.Select(split=x)),
    ("depth", lambda x: se.spectrum(W, 2, depth=x)),
    ("tolerance", lambda x: se.spectrum(W, 2, tolerance=x)),
]  # fmt: skip
#: What some of them do take.
TAKEN = {
    ("ignore", "null byte"), ("kind", "null byte"), ("parameter", "null byte"), ("of", "type"),
    ("views", "type"), ("split", "null byte"),
    *(("calibration", kind) for kind in (
        "set of numbers", "list of numbers", "pair", "scalar tensor", "integer tensor", "tensor",
        "meta", "boolean", "uint16", "float8", "complex numbers", "array of no dimensions",
    )),
}  # fmt: skip


@pytest.mark.parametrize(("name", "call"), CALLS, ids=lambda part: str(part)[:12])
def test_a_wrong_kind_of_an_argument_is_refused_by_name(
    name: str, call: Callable[[Any], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches raw errors of torch, NumPy and Python that leave open which argument was wrong, and
    arguments that take anything."""
    monkeypatch.chdir(tmp_path)
    for kind, value in JUNK.items():
        if (name, kind) in TAKEN:
            continue
        with pytest.raises((TypeError, ValueError, OSError)) as caught:
            call(value)
        message = str(caught.value)
        assert re.search(rf"\b{name}\b", message), (kind, message)
        assert "ambiguous" not in message, (kind, message)


@pytest.mark.parametrize("sparsity", [np.float32(0.5), np.float64(0.5), np.int64(0), 0.5], ids=repr)
def test_scalars_of_numpy_are_numbers(sparsity: Any) -> None:
    """Catches scalars of NumPy refused, or kept as they are where a state is saved."""
    assert se.sparsify(W, "magnitude", sparsity).nnz == se.sparsify(W, sparsity=float(sparsity)).nnz
    targets = se.Schedule({np.int64(3): sparsity}).targets
    assert [(type(step), type(share)) for step, share in targets.items()] == [(int, float)]
    assert type(se.OneShot(0.5, start=np.int16(3)).first) is int
    assert type(se.Iterative(0.5, np.int64(2), every=np.uint8(2)).last) is int


def test_schedules_of_billions_of_prunings_are_refused() -> None:
    """Catches a step given in place of an interval: a list that fills the memory."""
    with pytest.raises(ValueError, match="every: expected at most 1000000 prunings"):
        se.Constant(0.5, end=10**15)
    with pytest.raises(ValueError, match="rounds: expected 1 to 1000000"):
        se.Iterative(0.5, rounds=10**15)


def test_numbers_and_tensors_that_cannot_be_converted() -> None:
    """Catches an OverflowError of Python, and an error of torch about a layout without strides."""
    with pytest.raises(ValueError, match="tolerance: expected a finite number"):
        se.spectrum(W, 2, tolerance=10**400)
    with pytest.raises(TypeError, match="split: expected a dictionary"):
        se.Select(split=W.to_mkldnn())
    with pytest.raises(ValueError, match="layer: expected a weight with values"):
        se.SparseLinear.from_dense(nn.Linear(3, 3, device="meta"))
