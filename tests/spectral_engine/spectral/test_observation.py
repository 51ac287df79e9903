"""Spectra are looked at, and nothing of the model moves: a zoo of modules that move when read."""

import copy
import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import spectral_engine as se
from spectral_engine._util.observe import computed_weight


class Noisy(nn.Module):
    """Draws from every global generator, and from one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        own = torch.rand((), generator=self.generator)
        other = random.random() + float(np.random.rand())  # noqa: NPY002 (what users' code calls)
        return nn.functional.dropout(weight, 0.3) * (1 + own + other)


class Counting(nn.Module):
    """Counts in a buffer, an attribute, a list and a plain tensor, and flips its own flag."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.count, self.seen, self.plain = 0, [], torch.zeros(2)
        self.lock = threading.Lock()  # which has no copy

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.count += 1
        self.seen.append(self.count)
        self.plain.add_(1)
        self.train(not self.training)
        return weight * (1 + self.count)


class InPlace(nn.Module):
    """Clips the parameter itself, and replaces a buffer by another tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(1))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        self.last = weight.detach().mean().reshape(1)
        with torch.no_grad():
            weight.clamp_(-0.05, 0.05)
        return weight


class Graphed(nn.Module):
    """Keeps a tensor with a graph, of which there is no deepcopy."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.kept = self.scale * 2

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        self.kept = self.kept + 1
        return weight * self.kept


def parametrized(*parts: Callable[[], nn.Module]) -> nn.Module:
    layer = nn.Linear(7, 6)
    for part in parts:
        parametrize.register_parametrization(layer, "weight", part(), unsafe=True)
    return layer


def pruned() -> nn.Module:
    layer = nn.Linear(7, 6)
    prune.random_unstructured(layer, "weight", 0.5)
    return layer


def recurrent() -> nn.Module:
    layer = nn.GRU(6, 5)
    parametrizations.spectral_norm(layer, "weight_hh_l0")
    return layer


ZOO: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(7, 6),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(7, 6)),
    "spectral norm of a convolution": lambda: parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)),
    "spectral norm of a recurrent weight": recurrent,
    "old spectral norm": lambda: nn.utils.spectral_norm(nn.Linear(7, 6)),
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(7, 6)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(7, 6)),
    "noisy": lambda: parametrized(Noisy),
    "counting": lambda: parametrized(Counting),
    "in place": lambda: parametrized(InPlace),
    "graphed": lambda: parametrized(Graphed),
    "several": lambda: parametrized(Counting, Noisy, InPlace),
    "torch's pruning": pruned,
    "attention": lambda: nn.MultiheadAttention(4, 2),
    "norm": lambda: nn.Sequential(nn.Linear(7, 6), nn.BatchNorm1d(6), nn.Dropout()),
}


def zoo(kind: str) -> nn.Module:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    layer = ZOO[kind]()
    return nn.ModuleDict({"layer": layer, "again": layer, "head": nn.Linear(5, 4)})


def plain(value: Any) -> Any:
    """A value that can be compared later, whatever happens to it."""
    if isinstance(value, torch.Tensor):
        return (id(value), value._version, value.requires_grad, value.detach().clone().tolist())
    if isinstance(value, torch.Generator):
        return value.get_state().tolist()
    if isinstance(value, int | float | str | list | dict | tuple | None):
        return copy.copy(value)
    return id(value)


def state(model: nn.Module) -> dict[str, Any]:
    """Everything of a model, and of the random generators, that reading might change."""
    found: dict[str, Any] = {
        "torch": torch.get_rng_state().tolist(),
        "numpy": [str(part) for part in np.random.get_state()],  # noqa: NPY002
        "python": random.getstate(),
        "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
        "cache": dict(parametrize._cache),
    }
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key in ("_parameters", "_buffers"):
                tensors = {one: plain(held) for one, held in value.items() if held is not None}
                found[f"{name}.{key}"] = tensors
            elif key != "_modules":
                found[f"{name}.{key}"] = plain(value)
    return found


OBSERVERS: dict[str, Callable[[nn.Module], object]] = {
    "spectra": lambda model: se.spectra(model, 3, progress=False),
    "tracker": lambda model: se.SpectrumTracker(model, rank=3).record(),
    "compare": lambda model: se.compare(model, model, 3, progress=False),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("kind", ZOO)
def test_observing_changes_nothing(kind: str, observer: str, training: bool) -> None:
    """Catches power iterations, counters, random draws, clipped parameters and flipped flags that
    are a spectrum's doing, and a model that is left on another version of its tensors."""
    model = zoo(kind).train(training)
    before = state(model)
    OBSERVERS[observer](model)
    after = state(model)
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert after[name] == value, name


@pytest.mark.parametrize("kind", ZOO)
def test_a_training_that_is_tracked_is_the_same(kind: str) -> None:
    """Catches any change of the model or of random numbers that a later step depends on."""

    def train(tracked: bool) -> dict[str, torch.Tensor]:
        model = zoo(kind)
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        tracker = se.SpectrumTracker(model, every=1, rank=2) if tracked else None
        for _ in range(3):
            optimizer.zero_grad()
            used = (weight_of(model[name]).square().sum() for name in ("layer", "head"))
            loss = sum(used, torch.rand(()))
            loss.backward(retain_graph=True)
            optimizer.step()
            if tracker is not None:
                tracker.step()
        return copy.deepcopy(model["head"].state_dict()) | {
            name: tensor.clone() for name, tensor in model["layer"].state_dict().items()
        }

    free, watched = train(False), train(True)
    assert all(torch.equal(free[name], watched[name]) for name in free)


def weight_of(module: nn.Module) -> torch.Tensor:
    name = {nn.GRU: "weight_hh_l0", nn.MultiheadAttention: "in_proj_weight"}
    for cls, own in name.items():
        if isinstance(module, cls):
            return getattr(module, own)
    return module[0].weight if isinstance(module, nn.Sequential) else module.weight


def test_the_value_is_that_of_the_next_forward_pass() -> None:
    """Catches the spectrum of the original, or of a parametrization in another mode."""
    for training in (True, False):
        layer = parametrizations.spectral_norm(nn.Linear(7, 6)).train(training)
        read = computed_weight(layer, "weight")
        assert not read.requires_grad
        assert torch.equal(read, layer.weight)


def test_cached_parametrizations_keep_no_value_of_ours() -> None:
    """Catches a value without a graph in torch's cache, from which a training would then go on."""
    layer = parametrizations.orthogonal(nn.Linear(5, 5))
    with parametrize.cached():
        se.spectra(layer, 2, progress=False)
        assert not parametrize._cache
        assert layer.weight.requires_grad


def test_observing_between_forward_and_backward() -> None:
    """Catches a buffer or parameter written in place, which the backward pass refuses."""
    layer = parametrizations.spectral_norm(nn.Linear(7, 6))
    loss = layer(torch.ones(2, 7)).sum()
    se.spectra(layer, 2, progress=False)
    loss.backward()
