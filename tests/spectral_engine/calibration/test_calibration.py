"""Calibration: inputs of every kind of layer, moments, order, memory, and a model left whole."""

import weakref
from collections.abc import Iterator
from itertools import chain, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_sequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

import spectral_engine as se
from spectral_engine.calibration.calibrator import Calibration
from spectral_engine.calibration.forward import moved
from spectral_engine.calibration.inputs import Call, inputs_of
from spectral_engine.calibration.stages import Stage
from spectral_engine.layers.bias import add_to_bias
from spectral_engine.layers.find import find_layers
from spectral_engine.layers.selector import Selector
from spectral_engine.matrix.moments import PANEL, Accumulator, Moments
from spectral_engine.recipe.methods import REFITS

CPU = torch.device("cpu")


def seeded(build):
    torch.manual_seed(0)
    return build()


def layers_of(model: nn.Module):
    return find_layers(model, Selector.of(None, None))[0]


def stages(calibration: Calibration) -> list[Stage]:
    return [stage for stages in calibration._passes for stage in stages]


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def untouched(model: nn.Module, before: dict[str, torch.Tensor], training: bool) -> bool:
    """Whether weights, modes and hooks are what they were."""
    now = model.state_dict()
    return (
        all(torch.equal(now[key], before[key]) for key in before)
        and all(module.training == training for module in model.modules())
        and not any(hooks_of(module) for module in model.modules())
    )


def hooks_of(module: nn.Module) -> list[object]:
    return [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]


class Mlp(nn.Module):
    """Three layers whose inputs are easy to tell."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, width)
        self.second = nn.Linear(width, width)
        self.third = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(torch.relu(self.second(torch.relu(self.first(x)))))


def batches(count: int = 4, rows: int = 16, n: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(rows + i, n, generator=generator) for i in range(count)]


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
    group that is mistaken, and parts that lose windows."""
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
        parts = list(inputs_of(module, "weight").rows(x))
        rows = torch.cat(parts, dim=-2)
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
    [rows] = inputs.rows(inputs.find(call))
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
    found = Calibration(module, layers_of(module), data, sequential=sequential, asymmetric=dense)
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
            {step.layer.view.parameter: step.moments for step in Calibration(m, layers_of(m), x)}
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
    calibration = Calibration(model, layers_of(model), x, sequential=True)
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

    def error(**options) -> float:
        model = seeded(lambda: nn.GRU(16, 24))
        se.prune(model, sparsity=0.5, group="row", targets="weight_hh*", **options)
        with torch.no_grad():
            return float((model(apart)[0] - expected).square().mean())

    assert error(calibration=[data], refit="least-squares") < 0.5 * error()


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
    report = se.prune(Net(), sparsity=0.5, calibration=data, refit="least-squares", group="row")
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


def test_moments_are_those_of_all_samples():
    """Catches a mean of batch means, batches of different size being counted alike."""
    model, data = Mlp(), batches()
    steps = {step.layer.name: step.moments for step in Calibration(model, layers_of(model), data)}
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
    calibration = Calibration(model, layers_of(model), [torch.randn(9, 8)])
    names = [[layer.name[0] for layer in stage.layers] for stage in stages(calibration)]
    assert names == [["q", "k", "v"], ["o"], ["l"]]


def test_sequential_inputs_come_through_pruned_layers():
    """Catches moments of the dense model where those of the pruned one were asked for."""
    for sequential in (True, False):
        model, dense, data = Mlp(), Mlp(), batches()
        se.prune(model, sparsity=0.5, calibration=data, sequential=sequential, group="row")
        source = model if sequential else dense
        x = torch.relu(source.first(torch.cat(data))).detach()
        score = dense.second.weight * x.square().mean(0).sqrt()
        kept = score.abs() >= score.abs().topk(6, dim=1).values[:, -1:]
        assert torch.equal(model.second.weight != 0, kept)


def test_passes_gather_what_memory_allows():
    """Catches one pass a layer where one would do, or more moments held than the largest layer's
    and as much again."""
    one_large, all_alike = nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 4)), Mlp(8)
    for model, n, passes in ((one_large, 64, 1), (all_alike, 8, 3)):
        report = se.prune(model, calibration=torch.randn(9, n))
        assert report.options["passes"] == passes
        for asked, expected in ((True, len(layers_of(model))), (False, 1), (None, passes)):
            calibration = Calibration(model, layers_of(model), torch.randn(9, n), sequential=asked)
            assert calibration.passes == expected
            most = 2 * 4 * n * n + 4 * n * 8  # moments, a copy, the pruned weight
            assert (calibration.bytes > most) == (expected < passes)


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
    calibration = Calibration(model, layers_of(model), data)
    assert [[stage.layers[0].name for stage in stages] for stages in calibration._passes] == [
        ["0.weight", "2.weight", "4.weight"], ["6.weight", "8.weight", "10.weight"]
    ]  # fmt: skip
    assert calibration.bytes == 2 * 4 * 32**2 + 4 * 32 * 8  # moments, a copy, the pruned weight
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
    report = se.prune(
        model, calibration=batches(), forward=lambda m, x: m["b"](torch.relu(m["a"](x)))
    )
    assert [layer.name for layer in report.layers] == ["a.weight", "b.weight"]


def test_passes_end_early():
    """Catches passes that go on to layers whose outputs nobody needs."""
    ran = []
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    for i, layer in enumerate(model):
        layer.register_forward_hook(lambda *_, i=i: ran.append(i))
    se.prune(model, calibration=[torch.randn(3, 8)])
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


def test_kinds_of_batches():
    """Catches labels that are given to the model, and dictionaries that are not unpacked."""
    data = batches()
    x = torch.cat(data)
    loader = DataLoader(TensorDataset(x, torch.zeros(len(x))), batch_size=16)
    kinds = {
        "tensors": data,
        "one tensor": x,
        "tuples": tuple((batch, torch.zeros(len(batch))) for batch in data),
        "loader": loader,
        "dictionaries": [{"x": batch} for batch in data],
        "one dictionary": {"x": x},
    }
    results = {}
    for name, calibration in kinds.items():
        model = Mlp()
        se.prune(model, sparsity=0.5, calibration=calibration, refit="least-squares")
        results[name] = model.third.weight.detach()
    own = Mlp()
    se.prune(own, sparsity=0.5, calibration=[{"image": batch} for batch in data],
             forward=lambda model, batch: model(batch["image"]), refit="least-squares")  # fmt: skip
    results["forward"] = own.third.weight.detach()
    for name, found in results.items():
        assert torch.allclose(found, results["tensors"], atol=1e-4), name


@pytest.mark.parametrize("refit", [None, *REFITS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_every_refit_prunes_a_model(refit, dtype):
    """Catches a combination of refit and dtype that fails, or misses the sparsity."""
    model = Mlp().to(dtype)
    data = [batch.to(dtype) for batch in batches()]
    report = se.prune(
        model, sparsity=0.5, calibration=data, refit=refit, bias_correction=True, group="row"
    )
    assert all(layer.sparsity == 0.5 for layer in report.layers)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert report.options["refit"] == refit
    assert report.options["bias_correction"] is True


def test_refit_helps_the_whole_model():
    """Catches a refit that is computed and not written back; and asymmetric fits that are not
    nearer to the dense model's outputs."""
    generator = torch.Generator().manual_seed(1)
    few, more = torch.randn(8, 3, generator=generator), torch.randn(3, 8, generator=generator)
    *data, apart = (torch.tanh(batch @ few @ more) for batch in batches(21, 200))
    dense = Mlp(48)
    expected = dense(apart).detach()

    def error(**options) -> float:
        model = Mlp(48)
        se.prune(model, sparsity=0.6, calibration=data, group="row", sequential=True, **options)
        with torch.no_grad():
            return float((model(apart) - expected).square().mean())

    plain = error()
    fitted = error(refit="least-squares")
    mended = error(refit="least-squares", bias_correction=True)
    assert fitted < 0.8 * plain
    assert mended < 0.8 * plain
    assert error(refit="least-squares", asymmetric=True, bias_correction=True) < mended
    assert error(refit="admm") < fitted


BIASED = [
    (lambda: nn.Linear(6, 5), torch.randn(30, 6)),
    (lambda: nn.Conv2d(4, 6, 3, groups=2), torch.randn(5, 4, 6, 6)),
    (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), torch.randn(5, 4, 6, 6)),
]


@pytest.mark.parametrize(("build", "x"), BIASED)
def test_bias_correction_in_the_model(build, x):
    """Catches a shift that is added to the bias of another feature."""
    model = nn.Sequential(seeded(build))
    before = model(x)
    se.prune(model, sparsity=0.5, calibration=x, bias_correction=True)
    axes = [0, *range(2, x.ndim)]
    assert torch.allclose(model(x).mean(axes), before.mean(axes), atol=1e-5)


def test_bias_of_parts():
    """Catches the bias of one gate, or of a query, that goes to another."""
    for module, name, rows in (
        (nn.LSTM(3, 4), "weight_ih_l0[cell]", slice(8, 12)),
        (nn.MultiheadAttention(4, 2), "in_proj_weight[k]", slice(4, 8)),
        (nn.MultiheadAttention(4, 2, kdim=3), "v_proj_weight", slice(8, 12)),
    ):
        [layer] = [layer for layer in layers_of(module) if layer.name == name]
        bias = module.in_proj_bias if "proj" in name else module.bias_ih_l0
        before = bias.detach().clone()
        add_to_bias(layer, torch.arange(1.0, 5.0))
        changed = torch.zeros_like(before)
        changed[rows] = torch.arange(1.0, 5.0)
        assert torch.allclose(bias.detach() - before, changed, atol=1e-6)


NAN = torch.full((3, 8), float("nan"))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"calibration": [torch.ones(3, 8), NAN]}, ValueError, "calibration: batch 1 holds NaN"),
        ({"calibration": [(torch.ones(3, 8), {"a": [NAN]})]}, ValueError, "batch 0 holds NaN"),
        ({"calibration": []}, ValueError, "calibration: expected at least one batch"),
        ({"calibration": iter([torch.ones(3, 8)])}, TypeError, "gone through several times"),
        ({"calibration": (x for x in [NAN])}, TypeError, "got generator, which list"),
        ({"calibration": 3}, TypeError, "calibration: expected batches; got int"),
        ({"calibration": NAN, "forward": 3}, TypeError, "forward: expected a function"),
        ({"calibration": NAN, "sequential": 1}, TypeError, "sequential: expected True or False"),
        ({"calibration": NAN, "asymmetric": 1}, TypeError, "asymmetric: expected True or False"),
        ({"calibration": NAN, "sequential": False, "asymmetric": True}, ValueError, "asymmetric: "),
        ({"calibration": torch.ones(3, 8), "max_bytes": 100}, ValueError,
         r"max_bytes: .* 1,728 bytes, the largest those of second.weight; got 100"),
        ({"calibration": NAN, "max_bytes": 1.0}, TypeError, "max_bytes: expected an integer"),
        ({"calibration": torch.ones(3, 8), "bias_correction": 1}, TypeError, "bias_correction: "),
        ({"bias_correction": True}, ValueError, "bias_correction: needs calibration"),
        ({"refit": "least-squares"}, ValueError, "refit: 'least-squares' needs calibration"),
    ],
)  # fmt: skip
def test_bad_input_leaves_the_model_alone(options, error, message):
    """Catches a mistake that shows when half of the model is pruned."""
    model = Mlp()
    before = state(model)
    with pytest.raises(error, match=message):
        se.prune(model, **options)
    assert untouched(model, before, training=True)


class Fails(list):
    """Batches of which one pass, the third, breaks off."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        self.passes = getattr(self, "passes", 0) + 1
        yield from list.__iter__(self)
        if self.passes == 3:
            raise OSError("disk on fire")


def test_an_error_on_the_way_brings_all_back():
    """Catches a model left half pruned, its biases too, with masks or hooks on it."""
    model = Mlp().train()
    model.second.eval()
    before, modes = state(model), [module.training for module in model.modules()]

    def stop(row) -> None:
        if row.name == "second.weight":
            raise KeyboardInterrupt

    for data, progress, error in (
        (Fails(batches()), None, OSError),
        (batches(), stop, KeyboardInterrupt),
    ):
        with pytest.raises(error):
            se.prune(model, calibration=data, bias_correction=True, progress=progress)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert modes == [module.training for module in model.modules()]
        assert not any(hooks_of(module) for module in model.modules())
        assert not se.masks(model)


def test_nan_inside_the_model_is_refused():
    """Catches NaN that a layer makes of finite inputs, and that a mask would be drawn from."""
    model = Mlp()
    before = state(model)

    def forward(model: Mlp, x: torch.Tensor) -> torch.Tensor:
        return model.third(model.second(torch.relu(model.first(x)) / 0.0))

    with pytest.raises(ValueError, match=r"the inputs of second.weight hold NaN or infinity"):
        se.prune(model, calibration=batches(), forward=forward)
    assert untouched(model, before, training=True)


def test_evaluation_mode_without_a_trace():
    """Catches batch statistics that calibration moves, dropout, and gradients that are kept."""
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 2))
    model.train()
    before = model[1].running_mean.clone()
    se.prune(model, calibration=batches(), refit="least-squares")
    assert torch.equal(model[1].running_mean, before)
    assert all(module.training for module in model.modules())
    assert all(p.grad is None and p.grad_fn is None for p in model.parameters())


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


@pytest.mark.parametrize("refit", [None, "least-squares"])
@pytest.mark.parametrize("bias_correction", [False, True])
def test_peak_memory(refit, bias_correction):
    """Catches copies of the moments: two matrices of them are promised, beside the model."""
    n = 1536
    model = nn.Sequential(nn.Linear(n, 256), nn.ReLU(), nn.Linear(256, n), nn.ReLU(),
                          nn.Linear(n, 64))  # fmt: skip
    data = [torch.randn(32, n) for _ in range(2)]
    with Peak() as peak:
        se.prune(model, calibration=data, refit=refit, bias_correction=bias_correction,
                 group="row", masks=False)  # fmt: skip
    assert n * n * 4 < peak.most <= 2 * n * n * 4 + (1 << 20)


def test_moments_of_a_batch():
    """Catches the moments of one group of a convolution used for another."""
    x = torch.randn(4, 6, 5, 5) * torch.tensor([1.0, 1, 1, 9, 9, 9]).reshape(-1, 1, 1)
    model = nn.Sequential(seeded(lambda: nn.Conv2d(6, 4, 3, groups=2)))
    [step] = Calibration(model, layers_of(model), x)
    assert step.moments.second.shape == (2, 27, 27)
    assert step.moments[1].scale.mean() > 5 * step.moments[0].scale.mean()
    assert isinstance(step.moments[1], Moments)
    expected = model(x).detach()
    plain = nn.Sequential(seeded(lambda: nn.Conv2d(6, 4, 3, groups=2)))
    se.prune(plain, sparsity=0.6, calibration=x, group="row")
    se.prune(model, sparsity=0.6, calibration=x, group="row", refit="least-squares")
    errors = [float((network(x).detach() - expected).square().sum()) for network in (model, plain)]
    assert errors[0] < errors[1]


def test_a_packed_sequence_moves_whole():
    """Catches a packed batch taken apart as a tuple, with its lengths on the device."""
    packed = pack_sequence([torch.ones(3, 2), torch.ones(2, 2)])
    there = moved({"input": packed}, torch.device("meta"))["input"]
    assert there.data.is_meta
    assert there.batch_sizes.device.type == "cpu"


@pytest.mark.parametrize("compiled", [torch.compile, lambda model, **options: model])
def test_a_compiled_model_that_has_run_is_seen(compiled):
    """Catches a graph compiled before the hooks were there, which calls none of them."""
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)))
    batches = [torch.randn(6, 8)]
    wrapped = compiled(model, backend="eager")
    with torch.no_grad():
        wrapped(batches[0])
    assert not se.calibrate(wrapped, batches).unseen
    assert len(se.calibrate(wrapped, batches).moments) == 2


def test_an_encoder_with_a_padding_mask():
    """Catches the fused path of encoder layers: nested tensors, or modules that are not called."""
    layer = seeded(lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True))
    model = nn.TransformerEncoder(layer, 2)
    padding = torch.zeros(4, 5, dtype=torch.bool)
    padding[0, 3:] = True
    batches = [{"src": torch.randn(4, 5, 16), "src_key_padding_mask": padding}]
    found = se.calibrate(model, batches)
    assert all("out_proj" in name for name in found.unseen)  # whose inputs attention never shows
    assert all(moments.count == 20 for moments in found.moments.values())
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        torch.optim.swa_utils.AveragedModel,
        lambda model: torch.compile(model, backend="eager"),
    ],
)
def test_labels_are_left_out_for_wrapped_models(wrap):
    """Catches a wrapper that takes any arguments, and hands the labels to the model."""
    model = wrap(seeded(lambda: nn.Sequential(nn.Linear(8, 4))))
    batches = [(torch.randn(6, 8), torch.zeros(6))]
    assert len(se.calibrate(model, batches).moments) == 1


def test_modes_come_back_by_the_modules_own_way():
    """Catches a module left in one mode with the state of the other, as merged adapters have."""

    class Merging(nn.Linear):
        merged = False

        def train(self, mode: bool = True):
            super().train(mode)
            if self.merged == mode:
                self.weight.data += 1.0 if not mode else -1.0
                self.merged = not mode
            return self

    model = nn.Sequential(Merging(8, 8), nn.BatchNorm1d(8).eval())
    before = model[0].weight.detach().clone()
    se.calibrate(model, [torch.randn(6, 8)])
    assert [module.training for module in model] == [True, False]
    assert not model[0].merged
    torch.testing.assert_close(model[0].weight.detach(), before)


def test_what_cannot_be_calibrated_is_refused():
    """Catches moments of nothing, and an error from deep inside."""
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module; got str"):
        se.calibrate("model", [torch.ones(1, 8)])
    with pytest.raises(ValueError, match="targets: no prunable weight is left"):
        se.calibrate(nn.Linear(8, 8), [torch.ones(1, 8)], targets="Lineer")
