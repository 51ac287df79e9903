"""The inputs of recurrent matrices: the states that each step starts from."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_sequence

import spectral_engine as se
from tests.support.calibration_cases import (
    by_row,
    calibrator,
    hooks_of,
    seeded,
    stages,
)


def next_state(module: nn.RNNBase, suffix: str, x, h, c):
    """A step of one layer and direction as PyTorch documents it: (h, c)."""
    w_ih, w_hh, *biases = (
        getattr(module, f"{name}_{suffix}")
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    given = functional.linear(x, w_ih, biases[0])
    own = functional.linear(h, w_hh, biases[1])
    if isinstance(module, nn.RNN):
        return torch.tanh(given + own), c
    if isinstance(module, nn.GRU):
        reset, update = torch.sigmoid((given + own)[: 2 * len(h)]).chunk(2)
        new = torch.tanh(given[2 * len(h) :] + reset * own[2 * len(h) :])
        return (1 - update) * new + update * h, c
    i, f, g, o = (given + own).chunk(4)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return (getattr(module, f"weight_hr_{suffix}") @ h if module.proj_size else h), c


def recurrent_inputs(module: nn.RNNBase, sequence, h0, c0) -> dict[str, list[torch.Tensor]]:
    """The inputs of each weight_hh for a sequence (T, n) from states (layers, features)."""
    seen, place = {}, 0
    for layer in range(module.num_layers):
        outputs = []
        for direction in ("", "_reverse")[: 1 + module.bidirectional]:
            suffix, states, starts = f"l{layer}{direction}", [], []
            h, c = h0[place], c0[place]
            for x in sequence.flip(0) if direction else sequence:
                starts.append(h)
                h, c = next_state(module, suffix, x, h, c)
                states.append(h)
            seen[f"weight_hh_{suffix}"] = starts
            outputs.append(torch.stack(states[::-1] if direction else states))
            place += 1
        sequence = torch.cat(outputs, 1)
    return seen


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@given(
    kind=st.sampled_from([nn.RNN, nn.GRU, nn.LSTM]),
    layers=st.integers(1, 2),
    bidirectional=st.booleans(),
    batch_first=st.booleans(),
    projected=st.booleans(),
    form=st.sampled_from(["batch", "unbatched", "packed", "packed as it comes"]),
    with_state=st.booleans(),
    sequential=st.booleans(),
    asymmetric=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_recurrent_inputs_are_those_of_a_loop(
    kind, layers, bidirectional, batch_first, projected, form, with_state, sequential, asymmetric
):
    """Catches states that are shifted the wrong way or over the batch, the other direction's or
    layer's, a state that is left out or of another sequence, padding, and a pass that ends before
    its states were seen."""
    torch.manual_seed(layers)
    options = {"proj_size": 3} if projected and kind is nn.LSTM else {}
    module = kind(2, 5, layers, bidirectional=bidirectional, batch_first=batch_first, **options)
    count, size = layers * (1 + bidirectional), 3 if options else 5
    lengths = {"batch": [4, 4, 4], "unbatched": [4], "packed": [5, 3, 1]}.get(form, [1, 4, 3])
    sequences = [torch.randn(length, 2) for length in lengths]
    h0 = torch.randn(count, len(lengths), size) * with_state
    c0 = torch.randn(count, len(lengths), 5) * with_state
    state = (h0, c0)
    if form == "unbatched":
        x, state = sequences[0], (h0[:, 0], c0[:, 0])
    elif form == "batch":
        x = torch.stack(sequences, dim=0 if batch_first else 1)
    else:
        x = pack_sequence(sequences, enforce_sorted=form == "packed")
    hx = state if kind is nn.LSTM else state[0]
    data = [(x, hx) if with_state else (x,)]
    expected: dict[str, list[torch.Tensor]] = {}
    with torch.no_grad():
        for i, sequence in enumerate(sequences):
            for name, rows in recurrent_inputs(module, sequence, h0[:, i], c0[:, i]).items():
                expected.setdefault(name, []).extend(rows)
    dense = asymmetric and sequential
    found = calibrator(module, data, sequential=sequential, asymmetric=dense)
    steps = {step.layer.local_name: step for step in found}
    for name, step in steps.items():
        if name.startswith(f"weight_hh_l{layers - 1}"):
            rows = torch.stack(expected[name])
            second = rows.mT @ rows / len(rows)
            assert step.moments.count == len(rows)
            assert torch.allclose(step.moments.second, second, atol=1e-5)
            assert torch.allclose(step.moments.mean.float(), rows.mean(0), atol=1e-5)
            assert not dense or torch.allclose(step.moments.cross, second, atol=1e-5)
        elif not name.startswith("weight_ih_l0"):
            assert step.reason == f"the inputs of {name} stay inside {kind.__name__}"
    assert not hooks_of(module)


def test_cells_count_the_states_they_are_given():
    """Catches a cell's hidden state that is taken after its step, or its cell state."""

    class Loop(nn.Module):
        def __init__(self, kind: type[nn.RNNCellBase]) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.cell = kind(3, 4)

        def forward(self, sequence: torch.Tensor) -> torch.Tensor:
            zeros = torch.zeros(len(sequence[0]), 4)
            state = (zeros, zeros) if isinstance(self.cell, nn.LSTMCell) else zeros
            for x in sequence:
                state = self.cell(x, state)
            return state

    for cell, kind in ((nn.RNNCell, nn.RNN), (nn.GRUCell, nn.GRU), (nn.LSTMCell, nn.LSTM)):
        loop, fused, x = Loop(cell), kind(3, 4), torch.randn(5, 2, 3)
        fused.load_state_dict(
            {f"{name}_l0": value for name, value in loop.cell.state_dict().items()}
        )
        moments = [
            {step.layer.view.parameter: step.moments for step in calibrator(m, x)}
            for m in (loop, fused)
        ]
        for name, found in moments[0].items():
            assert found.count == 10
            assert torch.allclose(found.second, moments[1][f"{name}_l0"].second, atol=1e-5)


def test_states_are_the_modules_own():
    """Catches an output that another hook has changed, or one that lost its place in the order of
    stages: what reads the same input as a recurrent module is calibrated with it."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.gru, self.beside, self.head = nn.GRU(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.gru(x)[0] + self.beside(x))

    model, x = Net(), torch.randn(6, 2, 3)
    expected = torch.cat((torch.zeros(1, 2, 4), model.gru(x)[0][:-1].detach())).flatten(0, 1)
    model.gru.register_forward_hook(lambda m, a, output: (output[0] * 9, output[1]))
    calibration = calibrator(model, x, sequential=True)
    names = [{layer.name.split("[")[0] for layer in stage.layers} for stage in stages(calibration)]
    assert names == [{"gru.weight_ih_l0", "beside.weight"}, {"gru.weight_hh_l0"}, {"head.weight"}]
    [found] = {step.moments for step in calibration if "weight_hh" in step.layer.name}
    assert torch.allclose(found.second, expected.mT @ expected / 12, atol=1e-5)


def test_refit_of_recurrent_matrices_helps():
    """Catches a network whose input matrices are fitted and whose recurrent ones are not."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(3, 16, generator=generator)
    data, apart = (torch.randn(12, 64, 3, generator=generator) @ mix for _ in range(2))
    gru = seeded(lambda: nn.GRU(16, 24))
    expected = gru(apart)[0].detach()

    def error(refit=None, calibration=None) -> float:
        model = seeded(lambda: nn.GRU(16, 24))
        se.prune(model, by_row(0.5, refit), targets="weight_hh*", calibration=calibration)
        with torch.no_grad():
            return float((model(apart)[0] - expected).square().mean())

    assert error(se.LeastSquares(), [data]) < 0.5 * error()
