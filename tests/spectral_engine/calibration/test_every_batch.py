"""Every batch counts: control flow that differs between batches, and loaders that run out."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import spectral_engine as se
from tests.support.calibration_cases import Mlp, by_row, seeded


class Loop(nn.Module):
    """A step for each time, so that the first batch tells how often a layer is called."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state, out = x[:, 0], []
        for t in range(x.shape[1]):
            state = torch.tanh(self.cell(state + x[:, t]))
            out.append(self.head(state))
        return torch.stack(out, 1)


class Branch(nn.Module):
    """Two layers in an order that the batch decides, and one that only some batches reach."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.rare = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return self.c(self.b(self.a(x)))
        return self.rare(self.c(self.a(self.b(x))))


class Cross(nn.Module):
    """Attention to the input itself or to a context."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        return self.q(x).sum() + self.k(x if context is None else context).sum()


@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    sequential=st.sampled_from([None, True, False]),
)
def test_loops_of_any_length(lengths, sequential):
    """Catches a pass that ends where the first batch had nothing more to show."""
    batches = [torch.randn(3, n, 6) for n in lengths]
    calibration = se.Calibration(batches, sequential=sequential)
    report = se.prune(seeded(Loop), calibration=calibration)
    assert {layer.samples for layer in report.layers} == {3 * sum(lengths)}


@pytest.mark.parametrize("sequential", [None, True, False])
@pytest.mark.parametrize("turned", [False, True])
def test_branches(sequential, turned):
    """Catches layers whose samples depend on the order of the batches, and a layer that only some
    batches reach left out of the report."""
    batches = [torch.ones(8, 6), -torch.ones(8, 6), torch.ones(8, 6)][:: -1 if turned else 1]
    calibration = se.Calibration(batches, sequential=sequential)
    report = se.prune(seeded(Branch), calibration=calibration)
    samples = {layer.name: layer.samples for layer in report.layers}
    assert samples == {"a.weight": 24, "b.weight": 24, "c.weight": 24, "rare.weight": 8}
    inputs = se.calibrate(seeded(Branch), batches)
    few = "1 of 3 batches reached it"
    assert inputs.few == {"rare.weight": few}
    assert f"calibrated on little, {few}: rare.weight" in str(report)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("max_bytes", [1 << 20, 3 * 4 * 36])
def test_inputs_that_only_one_batch_shares(turned, max_bytes):
    """Catches a layer that takes another's moments because both saw the same in the first batch."""
    x, y, context = torch.randn(8, 6), torch.randn(8, 6), 5 * torch.randn(16, 6)
    batches = [{"x": x}, {"x": y, "context": context}][:: -1 if turned else 1]
    model, expected = seeded(Cross), torch.cat((x, context))
    inputs = se.calibrate(model, batches).moments
    second = inputs["k.weight"].second
    torch.testing.assert_close(second, expected.mT @ expected / 24, rtol=1e-4, atol=1e-5)
    assert (inputs["q.weight"].count, inputs["k.weight"].count) == (16, 24)
    report = se.prune(model, by_row(0.5), calibration=se.Calibration(batches, max_bytes=max_bytes))
    assert {row.name: row.samples for row in report.layers} == {"q.weight": 16, "k.weight": 24}
    assert report.calibration.passes == (1 if max_bytes == 1 << 20 else 2)


class Stream(IterableDataset):
    """Rows that come once; `opened` counts how often they were asked for."""

    def __init__(self, rows: int) -> None:
        self.rows, self.opened = iter(torch.randn(rows, 8)), 0

    def __iter__(self):
        self.opened += 1
        return self.rows


@pytest.mark.parametrize("rows", [16, 64])
@pytest.mark.parametrize("sequential", [None, True])
def test_a_loader_is_gone_through_once(rows, sequential):
    """Catches batches lost to the trace, and passes that find a loader empty."""
    stream = Stream(rows)
    calibration = se.Calibration(DataLoader(stream, batch_size=16), sequential=sequential)
    report = se.prune(Mlp(), calibration=calibration)
    assert {layer.samples for layer in report.layers} == {rows}
    assert stream.opened == 1


def test_a_loader_that_shuffles_gives_every_pass_the_same():
    """Catches passes over other batches than those that were traced, or seen by the dense model."""
    data = torch.randn(32, 8)
    loader = DataLoader(data, batch_size=5, shuffle=True)
    options = {"asymmetric": True, "max_bytes": 1 << 20}
    found, again = Mlp(), Mlp()
    torch.manual_seed(3)
    held = [batch.clone() for batch in loader]
    torch.manual_seed(3)
    se.prune(found, by_row(0.5, se.LeastSquares()), calibration=se.Calibration(loader, **options))
    se.prune(again, by_row(0.5, se.LeastSquares()), calibration=se.Calibration(held, **options))
    assert torch.equal(found.third.weight, again.third.weight)


def test_a_loader_that_has_run_out_is_named():
    """Catches an empty calibration that blames the list of batches."""
    loader = DataLoader(Stream(16), batch_size=16)
    model = Mlp()
    before = copy.deepcopy(model.state_dict())
    se.calibrate(model, loader)
    with pytest.raises(ValueError, match="got none from DataLoader, which may have run out"):
        se.prune(model, calibration=loader)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
