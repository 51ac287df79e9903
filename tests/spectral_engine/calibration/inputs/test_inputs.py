"""The inputs of each kind of layer."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import spectral_engine as se
from spectral_engine.calibration.inputs import Call, inputs_of
from spectral_engine.matrix.moments import Moments
from tests.support.calibration_cases import by_row, calibrator, layers_of, seeded

CONVOLUTIONS = [
    (lambda: nn.Conv1d(3, 4, 3, stride=2, padding=1), (2, 3, 9)),
    (lambda: nn.Conv1d(4, 6, 3, dilation=2, groups=2), (2, 4, 11)),
    (lambda: nn.Conv2d(3, 5, (3, 1), padding="same"), (2, 3, 6, 5)),
    (lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1, padding_mode="reflect"), (3, 4, 6, 5)),
    (lambda: nn.Conv2d(3, 2, 3, padding=(1, 2), padding_mode="circular"), (3, 5, 6)),
    (lambda: nn.Conv3d(2, 4, 2, stride=(1, 2, 1), groups=2), (2, 2, 4, 4, 3)),
    (lambda: nn.ConvTranspose1d(3, 4, 3, stride=2, padding=1, output_padding=1), (2, 3, 5)),
    (lambda: nn.ConvTranspose2d(4, 6, 3, stride=(2, 1), dilation=2, groups=2), (2, 4, 5, 4)),
    (lambda: nn.ConvTranspose3d(2, 3, 2, padding=1), (2, 2, 3, 4, 3)),
]


@pytest.mark.parametrize(("build", "shape"), CONVOLUTIONS)
def test_windows_times_kernel_are_the_output(build, shape, monkeypatch):
    """Catches windows in another order than the kernel's columns, a stride, padding, dilation or
    group that is mistaken, parts that lose windows, and a sample of other windows than asked."""
    module = seeded(build)
    x = torch.randn(shape)
    [layer] = layers_of(nn.Sequential(module))
    matrices = layer.matrices()
    expected = module(x) - module.bias.reshape(-1, *[1] * len(module.kernel_size))
    if expected.ndim == len(module.kernel_size) + 1:
        expected = expected[None]
    expected = expected.flatten(2).transpose(1, 2).flatten(0, 1)  # (N, out)
    for chunk in (1, 1 << 20):
        monkeypatch.setattr("spectral_engine.calibration.inputs._CHUNK", chunk)
        inputs = inputs_of(module, "weight")
        spread = inputs.find(Call((x,), {}))
        rows = torch.cat(list(inputs.rows(spread, None)), dim=-2)
        assert rows.shape[-2] == inputs.count(spread)
        some = torch.tensor([0, 3, rows.shape[-2] - 1])
        chosen = torch.cat(list(inputs.rows(spread, some)), dim=-2)
        assert torch.equal(chosen, rows[..., some, :])
        assert rows.ndim == matrices.ndim
        if rows.ndim == 2:
            found = rows @ matrices.mT
        else:
            found = (rows @ matrices.mT).transpose(0, 1).flatten(1)
        assert torch.allclose(found, expected, atol=1e-5)


def calls(module: nn.Module, *arguments):
    """The arguments that a hook sees."""
    seen = []
    handle = module.register_forward_pre_hook(lambda m, a, k: seen.append((a, k)), with_kwargs=True)
    output = module(*arguments)
    handle.remove()
    return Call(*seen[0]), output


def test_inputs_of_other_layers():
    """Catches the wrong argument of a call: second for first, state for input."""
    bilinear = seeded(lambda: nn.Bilinear(3, 4, 5, bias=False))
    call, output = calls(bilinear, torch.randn(6, 3), torch.randn(6, 4))
    inputs = inputs_of(bilinear, "weight")
    [rows] = inputs.rows(inputs.find(call), None)
    assert torch.allclose(rows @ bilinear.weight.flatten(1).mT, output, atol=1e-5)

    cell = nn.LSTMCell(3, 4)
    x, state = torch.randn(5, 3), (torch.randn(5, 4), torch.randn(5, 4))
    call, _ = calls(cell, x, state)
    assert inputs_of(cell, "weight_ih", "forget").find(call) is x
    assert inputs_of(cell, "weight_hh", "forget").find(call) is state[0]
    call, _ = calls(cell, x)
    assert inputs_of(cell, "weight_hh", "forget").find(call) is None

    attention = nn.MultiheadAttention(8, 2, kdim=3, vdim=5)
    q, k, v = torch.randn(4, 1, 8), torch.randn(6, 1, 3), torch.randn(6, 1, 5)
    call, _ = calls(attention, q, k, v)
    for name, expected in (("q_proj_weight", q), ("k_proj_weight", k), ("v_proj_weight", v)):
        assert inputs_of(attention, name).find(call) is expected
    assert inputs_of(nn.MultiheadAttention(8, 2), "in_proj_weight", "v").find(call) is v

    lstm = nn.LSTM(3, 4)
    packed = pack_sequence([torch.randn(3, 3), torch.randn(2, 3)])
    call, _ = calls(lstm, packed)
    assert inputs_of(lstm, "weight_ih_l0", "cell").find(call) is packed.data


def test_what_no_hook_sees_is_in_the_report():
    """Catches a layer that is pruned without calibration and without a word."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.lstm = nn.LSTM(8, 8, num_layers=2)
            self.attention = nn.MultiheadAttention(8, 2)
            self.unused = nn.Linear(8, 8)
            self.head = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.lstm(x)[0]
            return self.head(self.attention(x, x, x)[0])

    data = [torch.randn(5, 3, 8) for _ in range(3)]
    report = se.prune(Net(), by_row(0.5, se.LeastSquares()), calibration=data)
    reasons = {layer.name: layer.uncalibrated for layer in report.layers}
    assert reasons["lstm.weight_hh_l0[cell]"] == "the inputs of weight_hh_l0 stay inside LSTM"
    assert reasons["lstm.weight_ih_l1[cell]"] == "the inputs of weight_ih_l1 stay inside LSTM"
    assert reasons["attention.out_proj.weight"] == "no batch reached it"
    assert reasons["unused.weight"] == "no batch reached it"
    seen = {layer.name: layer.samples for layer in report.layers if layer.samples is not None}
    assert seen.keys() == {
        *(
            f"lstm.{name}[{gate}]"
            for name in ("weight_ih_l0", "weight_hh_l1")
            for gate in ("input", "forget", "cell", "output")
        ),
        *(f"attention.in_proj_weight[{part}]" for part in "qkv"),
        "head.weight",
    }
    assert set(seen.values()) == {45}
    assert all(layer.nnz == layer.size // 2 for layer in report.layers)
    assert "not calibrated, no batch reached it: attention.out_proj.weight" in str(report)


def test_moments_of_a_batch():
    """Catches the moments of one group of a convolution used for another."""
    x = torch.randn(4, 6, 5, 5) * torch.tensor([1.0, 1, 1, 9, 9, 9]).reshape(-1, 1, 1)
    model = nn.Sequential(seeded(lambda: nn.Conv2d(6, 4, 3, groups=2)))
    [step] = calibrator(model, x)
    assert step.moments.second.shape == (2, 27, 27)
    assert step.moments[1].scale.mean() > 5 * step.moments[0].scale.mean()
    assert isinstance(step.moments[1], Moments)
    expected = model(x).detach()
    plain = nn.Sequential(seeded(lambda: nn.Conv2d(6, 4, 3, groups=2)))
    se.prune(plain, by_row(0.6), calibration=x)
    se.prune(model, by_row(0.6, se.LeastSquares()), calibration=x)
    errors = [float((network(x).detach() - expected).square().sum()) for network in (model, plain)]
    assert errors[0] < errors[1]
