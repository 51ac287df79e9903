"""Moments of all samples, and the memory they take."""

import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import spectral_engine as se
from spectral_engine.matrix.sums import PANEL, Accumulator
from tests.support.calibration_cases import (
    Mlp,
    batches,
    by_row,
    calibrator,
)

CPU = torch.device("cpu")


def test_moments_are_those_of_all_samples():
    """Catches a mean of batch means, batches of different size being counted alike."""
    model, data = Mlp(), batches()
    steps = {step.layer.name: step.moments for step in calibrator(model, data)}
    x = torch.cat(data).double()
    for name, module in (("first", model.first), ("second", model.second)):
        moments = steps[f"{name}.weight"]
        assert torch.allclose(moments.second.double(), x.mT @ x / len(x), rtol=1e-5, atol=1e-6)
        assert torch.allclose(moments.mean, x.mean(0), atol=1e-6)
        assert moments.count == len(x)
        x = torch.relu(module(x.float())).double().detach()


@pytest.mark.parametrize("batch", [None, 3])
def test_panels(batch):
    """Catches a lower triangle that is not filled, or filled transposed."""
    n = PANEL + 37
    samples = torch.randn(*([batch] if batch else []), 50, n)
    total = Accumulator(n, batch, torch.float32, CPU)
    total.add(samples[..., :20, :])
    total.add(samples[..., 20:, :])
    expected = samples.double().mT @ samples.double() / 50
    assert torch.allclose(total.moments().second.double(), expected, atol=1e-5)


def test_many_small_batches_lose_nothing():
    """Catches sums in half precision, or a running mean that drifts: 20,000 parts."""
    total = Accumulator(2, None, torch.float16, CPU)
    part = torch.tensor([[1.0, 0.1]], dtype=torch.float16)
    for _ in range(20_000):
        total.add(part)
    exact = part.double().mT @ part.double()
    assert torch.allclose(total.moments().second.double(), exact, rtol=1e-4)


class Peak(TorchDispatchMode):
    """The most bytes of tensors that were made under it and alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.most = 0
        self.known: set[int] = set()

    def _gone(self, place: int, size: int) -> None:
        self.known.discard(place)
        self.live -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                place, size = storage.data_ptr(), storage.nbytes()
                if size and place not in self.known and not self._was_given(tensor, args):
                    self.known.add(place)
                    self.live += size
                    self.most = max(self.most, self.live)
                    weakref.finalize(storage, self._gone, place, size)
        return result

    @staticmethod
    def _was_given(tensor: torch.Tensor, args) -> bool:
        place = tensor.untyped_storage().data_ptr()
        return any(
            isinstance(given, torch.Tensor) and given.untyped_storage().data_ptr() == place
            for given in args
        )


@pytest.mark.parametrize(
    "refit",
    [None, se.BiasCorrection(), se.LeastSquares(), se.LeastSquares(bias_correction=True)],
)
def test_peak_memory(refit):
    """Catches copies of the moments: three matrices of them are promised, beside the model; sums
    in float64 are as large as two."""
    n = 1536
    model = nn.Sequential(nn.Linear(n, 256), nn.ReLU(), nn.Linear(256, n), nn.ReLU(),
                          nn.Linear(n, 64))  # fmt: skip
    data = [torch.randn(32, n) for _ in range(2)]
    with Peak() as peak:
        se.prune(
            model, by_row(0.9, refit), calibration=se.Calibration(data, sequential=True),
            masks=False,
        )  # fmt: skip
    assert n * n * 4 < peak.most <= 3 * n * n * 4 + (2 << 20)


@pytest.mark.parametrize("features", [7, 96, 600])
def test_moments_do_not_depend_on_threads(features):
    """Catches sums that are split between threads: other bits on another machine's setting."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(features, 64), nn.ReLU(), nn.Linear(64, 8))
    batches = [torch.randn(3000, features) for _ in range(2)]
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(se.calibrate(model, batches).moments)
    finally:
        torch.set_num_threads(threads)
    for name, moments in found[0].items():
        assert torch.equal(moments.second, found[1][name].second)
        assert torch.equal(moments.mean, found[1][name].mean)
