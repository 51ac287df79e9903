"""Which layers are calibrated in one pass, in which order, through which pruned layers."""

from itertools import chain, pairwise

import torch
from torch import nn

import spectral_engine as se
from tests.support.calibration_cases import (
    Mlp,
    batches,
    by_row,
    calibrator,
    seeded,
    stages,
)


def test_equal_inputs_make_one_stage():
    """Catches q, k and v calibrated in three passes, and layers merged whose inputs differ."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.q, self.k, self.v, self.o, self.late = (nn.Linear(8, 8) for _ in range(5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mixed = self.o(self.q(x) * self.k(x) + self.v(x))
            x += 1.0  # in place: what comes after has other inputs
            return self.late(x) + mixed

    model = Block()
    calibration = calibrator(model, [torch.randn(9, 8)])
    names = [[layer.name[0] for layer in stage.layers] for stage in stages(calibration)]
    assert names == [["q", "k", "v"], ["o"], ["l"]]


def test_sequential_inputs_come_through_pruned_layers():
    """Catches moments of the dense model where those of the pruned one were asked for."""
    for sequential in (True, False):
        model, dense, data = Mlp(), Mlp(), batches()
        se.prune(model, by_row(0.5), calibration=se.Calibration(data, sequential=sequential))
        source = model if sequential else dense
        x = torch.relu(source.first(torch.cat(data))).detach()
        score = dense.second.weight * x.square().mean(0).sqrt()
        kept = score.abs() >= score.abs().topk(6, dim=1).values[:, -1:]
        assert torch.equal(model.second.weight != 0, kept)


def test_passes_fill_the_memory_that_is_allowed():
    """Catches more passes than `max_bytes` asks for, which cost the square of the depth, and more
    memory held than that."""
    model = Mlp(8)
    one = 4 * 8 * 8  # one stage's moments, and half of its sums
    passes = {max_bytes: calibrator(model, torch.randn(9, 8), max_bytes=max_bytes).passes
              for max_bytes in (3 * one, 5 * one - 1, 5 * one, 7 * one, 1 << 32)}  # fmt: skip
    assert passes == {3 * one: 3, 5 * one - 1: 3, 5 * one: 2, 7 * one: 1, 1 << 32: 1}
    for asked, expected in ((True, 3), (False, 1), (None, 1)):
        found = calibrator(model, torch.randn(9, 8), sequential=asked)
        assert (found.passes, found.bytes) == (expected, (3 if expected == 3 else 7) * one)
    report = se.prune(model, calibration=torch.randn(9, 8))
    assert report.calibration.passes == 1


def test_a_pass_ends_with_its_block_and_sees_the_blocks_before_it_pruned():
    """Catches a pass that runs to the model's end, and moments that miss what earlier passes
    pruned, or see what their own does."""

    def build() -> nn.Sequential:
        torch.manual_seed(0)
        widths = [8, 8, 32, 8, 8, 32, 8]
        pairs = ((nn.Linear(a, b), nn.Tanh()) for a, b in pairwise(widths))
        return nn.Sequential(*chain(*pairs))

    model, dense, data = build(), build(), batches()
    calls = []
    model[-2].register_forward_hook(lambda *_: calls.append(1))
    most = 3 * 4 * 32**2  # sums in float64, and the moments that are made of them
    calibration = calibrator(model, data, max_bytes=most + 2 * 4 * 8 * 8)
    assert [[stage.layers[0].name for stage in stages] for stages in calibration._passes] == [
        ["0.weight", "2.weight", "4.weight"], ["6.weight", "8.weight", "10.weight"]
    ]  # fmt: skip
    assert calibration.bytes == most
    calls.clear()
    for step in calibration:
        place = int(step.layer.name.split(".")[0])
        x = torch.cat(data)
        with torch.no_grad():
            for i in range(place):
                x = (model if i < 6 <= place else dense)[i](x)
        assert torch.allclose(step.moments.second, x.mT @ x / len(x), atol=1e-5)
        assert len(calls) == (0 if place < 6 else len(data))
        step.layer.write(step.layer.matrices() * 0.5)


def test_order_is_that_of_the_forward_pass():
    """Catches the order of registration, by which a layer would see its own successor pruned."""
    model = nn.ModuleDict({"b": nn.Linear(8, 8), "a": nn.Linear(8, 8)})
    calibration = se.Calibration(batches(), forward=lambda m, x: m["b"](torch.relu(m["a"](x))))
    pruned = []
    report = se.prune(model, calibration=calibration, progress=pruned.append)
    assert [layer.name for layer in pruned] == ["a.weight", "b.weight"]
    assert [layer.name for layer in report.layers] == ["b.weight", "a.weight"]  # as in the model


def test_passes_end_early():
    """Catches passes that go on to layers whose outputs nobody needs."""
    ran = []
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    for i, layer in enumerate(model):
        layer.register_forward_hook(lambda *_, i=i: ran.append(i))
    least = calibrator(model, torch.randn(3, 8), sequential=True).bytes  # nothing can be kept
    ran.clear()
    calibration = se.Calibration([torch.randn(3, 8)], sequential=True, max_bytes=least)
    se.prune(model, calibration=calibration)
    assert ran == [*range(4), 0, 0, 1, 0, 1, 2, *range(4)]


def test_shared_modules_see_all_their_inputs():
    """Catches a module used twice that is calibrated on its first use only."""
    layer = seeded(lambda: nn.Linear(8, 8))
    model = nn.Sequential(layer, nn.Tanh(), layer)
    report = se.prune(model, calibration=batches(2))
    assert [row.samples for row in report.layers] == [2 * (16 + 17)]
    tied = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    tied[1].weight = tied[0].weight
    report = se.prune(tied, calibration=batches(2))
    assert [row.samples for row in report.layers] == [2 * (16 + 17)]
