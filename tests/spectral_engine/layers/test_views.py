"""Each kind of module as matrices: the right entries, with output features for rows."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spectral_kernels import stream_id
from torch import nn

import spectral_engine as se
from spectral_engine.layers import views as layer_views
from spectral_engine.layers.find import Layer, find_layers
from spectral_engine.layers.selector import Selector


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """A registry of the test's own."""
    monkeypatch.setattr(layer_views, "_REGISTRY", dict(layer_views._REGISTRY))


def layers_of(module: nn.Module, **options) -> dict[str, Layer]:
    layers, _ = find_layers(module, Selector.of("*", None), **options)
    return {layer.name: layer for layer in layers}


class Conv1D(nn.Module):
    """The linear layer of GPT-2 as transformers writes it: weight (in, out)."""

    def __init__(self, out: int, inside: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inside, out))
        self.bias = nn.Parameter(torch.randn(out))

    def forward(self, x):
        return x @ self.weight + self.bias


Conv1D.__module__, Conv1D.__qualname__ = "transformers.pytorch_utils", "Conv1D"


class MixtralExperts(nn.Module):
    """Experts stored (experts, out, in), and what is no matrix of theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(3, 8, 5))
        self.down_proj = nn.Parameter(torch.randn(3, 5, 4))
        self.bias = nn.Parameter(torch.randn(3, 5))


class GptOssExperts(MixtralExperts):
    """Experts stored (experts, in, out)."""


FEATURES = [
    (lambda: nn.Linear(5, 6), (4, 5), -1),
    (lambda: Conv1D(6, 5), (4, 5), -1),
    (lambda: nn.Conv1d(4, 6, 3), (2, 4, 9), 1),
    (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 7, 7), 1),
    (lambda: nn.Conv2d(6, 6, 3, groups=6), (2, 6, 7, 7), 1),
    (lambda: nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last), (2, 4, 7, 7), 1),
    (lambda: nn.Conv2d(4, 8, 3, groups=2).to(memory_format=torch.channels_last), (1, 4, 7, 7), 1),
    (lambda: nn.Conv3d(2, 4, 2), (1, 2, 4, 4, 4), 1),
    (lambda: nn.ConvTranspose1d(3, 5, 2), (2, 3, 6), 1),
    (lambda: nn.ConvTranspose2d(4, 6, 2, groups=2), (2, 4, 5, 5), 1),
    (lambda: nn.ConvTranspose3d(2, 3, 2), (1, 2, 3, 3, 3), 1),
]


@pytest.mark.parametrize(("make", "shape", "axis"), FEATURES)
def test_rows_are_output_features(make, shape, axis):
    """Catches a transposed weight, a wrong group, and rows that mix output features: where row i
    of matrix b is zeroed, output b m + i must change, and no other."""
    torch.manual_seed(0)
    module = make()
    [layer] = layers_of(module).values()
    x = torch.randn(shape)
    before = module(x).detach().movedim(axis, 0)
    matrices = layer.matrices().clone().reshape(-1, *layer.matrices().shape[-2:])
    b, m, n = matrices.shape
    assert (b * m, b * m * n) == (before.shape[0], module.weight.numel())
    for row in range(b * m):
        changed = matrices.clone()
        changed[row // m, row % m] = 0
        layer.write(changed.reshape(layer.matrices().shape))
        after = module(x).detach().movedim(axis, 0)
        differs = (after != before).flatten(1).any(1)
        assert differs.nonzero().flatten().tolist() == [row]


def test_columns_are_inputs_of_the_group():
    """Catches a grouped transposed convolution whose columns are not (in / groups) x kernel."""
    up = nn.ConvTranspose2d(4, 6, (2, 3), groups=2, bias=False)
    [layer] = layers_of(up).values()
    matrices = layer.matrices()
    assert matrices.shape == (2, 3, 2 * 2 * 3)
    x = torch.zeros(1, 4, 1, 1)
    x[0, 3] = 1.0  # second input of the second group
    expected = matrices[1].reshape(3, 2, 2, 3)[:, 1]
    assert torch.equal(up(x)[0, 3:], expected)


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


@pytest.mark.parametrize("directions", [1, 2])
def test_lstm_gates(directions):
    """Catches gates in another order, a layer or direction left out: an LSTM computed from the
    views must be the module."""
    torch.manual_seed(0)
    lstm = nn.LSTM(3, 4, num_layers=2, bias=False, bidirectional=directions == 2)
    layers = layers_of(lstm)
    assert len(layers) == 2 * directions * 2 * 4
    x = torch.randn(5, 1, 3)
    expected, _ = lstm(x)
    for index in range(2):
        outputs = []
        for suffix in ("", "_reverse")[:directions]:
            at = f"l{index}{suffix}"
            h, c = torch.zeros(1, 4), torch.zeros(1, 4)
            out = []
            for step in x.flip(0) if suffix else x:
                gates = {
                    gate: step @ layers[f"weight_ih_{at}[{gate}]"].matrices().T
                    + h @ layers[f"weight_hh_{at}[{gate}]"].matrices().T
                    for gate in ("input", "forget", "cell", "output")
                }
                c = sigmoid(gates["forget"]) * c + sigmoid(gates["input"]) * gates["cell"].tanh()
                h = sigmoid(gates["output"]) * c.tanh()
                out.append(h)
            outputs.append(torch.stack(out[::-1] if suffix else out))
        x = torch.cat(outputs, -1)
    assert torch.allclose(x, expected, atol=1e-6)


@pytest.mark.parametrize("kind", [nn.GRU, nn.GRUCell])
def test_gru_gates(kind):
    """Catches reset and update swapped, and a cell that is not seen as its gates."""
    torch.manual_seed(0)
    module = kind(3, 4)
    suffix = "_l0" if kind is nn.GRU else ""
    layers = layers_of(module)
    assert len(layers) == 6
    x, h = torch.randn(1, 3), torch.randn(1, 4)
    biases = [getattr(module, f"bias_{of}{suffix}").chunk(3) for of in ("ih", "hh")]
    inside, inner = (
        [
            v @ layers[f"weight_{of}{suffix}[{gate}]"].matrices().T + bias
            for gate, bias in zip(("reset", "update", "new"), own, strict=True)
        ]
        for of, v, own in zip(("ih", "hh"), (x, h), biases, strict=True)
    )
    r, z = sigmoid(inside[0] + inner[0]), sigmoid(inside[1] + inner[1])
    expected = (1 - z) * torch.tanh(inside[2] + r * inner[2]) + z * h
    result = module(x[None], h[None])[0][0] if kind is nn.GRU else module(x, h)
    assert torch.allclose(result, expected, atol=1e-6)


def test_recurrent_modules_without_gates_and_with_projection():
    """Catches a projection cut into gates, and plain or cell modules left out."""
    assert list(layers_of(nn.RNN(3, 4))) == ["weight_ih_l0", "weight_hh_l0"]
    assert list(layers_of(nn.RNNCell(3, 4))) == ["weight_ih", "weight_hh"]
    assert len(layers_of(nn.LSTMCell(3, 4))) == 8
    projected = layers_of(nn.LSTM(3, 4, proj_size=2))
    assert projected["weight_hr_l0"].matrices().shape == (2, 4)
    assert projected["weight_hh_l0[output]"].matrices().shape == (4, 2)


@pytest.mark.parametrize("sizes", [{}, {"kdim": 6, "vdim": 5}])
def test_attention_projections(sizes):
    """Catches q, k and v swapped or taken as one: attention computed from the views must be the
    module, with one packed weight and with three."""
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 1, bias=False, **sizes)
    layers = layers_of(attention)
    assert len(layers) == 4
    wq, wk, wv = (
        layers[f"{p}_proj_weight" if sizes else f"in_proj_weight[{p}]"].matrices() for p in "qkv"
    )
    query = torch.randn(3, 8)
    key, value = torch.randn(4, sizes.get("kdim", 8)), torch.randn(4, sizes.get("vdim", 8))
    weights = torch.softmax((query @ wq.T) @ (key @ wk.T).T / math.sqrt(8), -1)
    expected = weights @ (value @ wv.T) @ layers["out_proj.weight"].matrices().T
    assert torch.allclose(attention(query, key, value)[0], expected, atol=1e-5)


def test_experts_are_a_batch():
    """Catches experts pruned as one matrix, or with input features for rows."""
    module = MixtralExperts()
    layers = layers_of(module)
    assert list(layers) == ["gate_up_proj", "down_proj"]
    assert torch.equal(layers["gate_up_proj"].matrices(), module.gate_up_proj)
    module = GptOssExperts()
    layers = layers_of(module)
    assert torch.equal(layers["gate_up_proj"].matrices(), module.gate_up_proj.transpose(1, 2))
    report = se.prune(nn.ModuleDict({"experts": module}))
    assert [skipped.name for skipped in report.skipped] == ["experts.bias"]


def test_bilinear_and_embeddings():
    """Catches a weight of three dimensions that is skipped, and an embedding pruned unasked."""
    bilinear = nn.Bilinear(2, 3, 4)
    assert layers_of(bilinear)["weight"].matrices().shape == (4, 6)
    model = nn.ModuleDict({"a": nn.Embedding(9, 4), "b": nn.EmbeddingBag(9, 4), "c": bilinear})
    report = se.prune(model, sparsity=0.5)
    assert [row.name for row in report.layers] == ["c.weight"]
    assert {s.reason for s in report.skipped} == {"an embedding; name it in targets to prune it"}
    report = se.prune(model, sparsity=0.5, targets=["Embedding", "b"])
    assert [row.name for row in report.layers] == ["a.weight", "b.weight"]


@settings(max_examples=30)
@given(
    kind=st.sampled_from([nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d]),
    groups=st.integers(1, 3),
    inside=st.integers(1, 3),
    out=st.integers(1, 3),
    kernel=st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_written_values_are_read_back(kind, groups, inside, out, kernel, dtype):
    """Catches values that land in other places than they came from, in any grouping."""
    module = kind(groups * inside, groups * out, kernel, groups=groups).to(dtype)
    [layer] = layers_of(module).values()
    values = torch.arange(module.weight.numel()).to(dtype).reshape(layer.matrices().shape)
    layer.write(values)
    assert torch.equal(layer.matrices(), values)
    assert sorted(module.weight.flatten().tolist()) == sorted(values.flatten().tolist())


def test_parts_write_only_themselves():
    """Catches a gate that is written over its neighbours."""
    lstm = nn.LSTM(3, 4)
    layer = layers_of(lstm)["weight_hh_l0[cell]"]
    before = lstm.weight_hh_l0.detach().clone()
    layer.write(torch.full((4, 4), 7.0))
    assert (lstm.weight_hh_l0[8:12] == 7.0).all()
    lstm.weight_hh_l0.data[8:12] = before[8:12]
    assert torch.equal(lstm.weight_hh_l0, before)


class Fused(nn.Module):
    """A module that no registry knows."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Parameter(torch.randn(3, 6, 4))
        self.table = nn.Parameter(torch.randn(5, 4))


class Finer(Fused):
    """A subclass of it."""


def fused_views(module):
    return [
        se.View("qkv", lambda weight, i=i: weight[i], part=part) for i, part in enumerate("qkv")
    ]


def test_registered_function_is_used():
    """Catches a registered class that is not asked, or whose subclasses are not."""
    assert layers_of(Fused()) == {}
    se.register_layer(Fused, fused_views)
    model = nn.Sequential(Finer(), nn.Linear(4, 4))
    before = model[0].qkv.detach().clone()
    report = se.prune(model, "randomized", 0.5, seed=3)
    assert [row.name for row in report.layers] == ["0.qkv[q]", "0.qkv[k]", "0.qkv[v]", "1.weight"]
    assert [row.shape for row in report.layers[:3]] == [(6, 4)] * 3
    assert [skipped.reason for skipped in report.skipped] == ["Finer.table is not seen as a matrix"]
    for i, part in enumerate("qkv"):
        expected = se.sparsify(
            before[i], "randomized", 0.5, seed=3, stream=stream_id(f"0.qkv[{part}]")
        )
        assert torch.equal(model[0].qkv[i], expected.weight)
    se.register_layer(Finer, lambda module: [])
    assert layers_of(Finer()) == {}
    assert len(layers_of(Fused())) == 3


def test_registered_name_is_a_glob():
    """Catches a class that must be imported to be registered, globs asked before classes, and an
    earlier glob asked before a later one."""
    se.register_layer("*Fused", lambda module: [])
    assert layers_of(Fused()) == {}
    se.register_layer("*.Fused", lambda module: [se.View("table", opt_in="a table")])
    assert list(layers_of(Fused())) == ["table"]
    with pytest.raises(ValueError, match="no prunable weight is left"):
        se.prune(Fused())
    assert se.prune(Fused(), targets="table").skipped[0].name == "qkv"
    se.register_layer(Fused, fused_views)
    assert list(layers_of(Finer())) == ["qkv[q]", "qkv[k]", "qkv[v]"]
    se.register_layer("*.Linear", lambda module: [])
    assert list(layers_of(nn.Linear(2, 2))) == ["weight"]


@pytest.mark.parametrize(
    ("views", "error", "message"),
    [
        (lambda module: ["qkv"], TypeError, "expected views of Fused; got 'qkv'"),
        (lambda module: [se.View("q")], ValueError, "views of parameters of Fused; got 'q'"),
        (lambda module: [se.View("qkv", lambda w: w[0, 0])], ValueError, r"2 dimensions .*\(4,\)"),
        (lambda module: [se.View("table", batch=True)], ValueError, r"3 dimensions .*\(5, 4\)"),
        (lambda module: [se.View("qkv", lambda w: w[5])], ValueError, r"of shape \(3, 6, 4\): "),
        (lambda module: [se.View("qkv", lambda w: w.mT.flatten(1))], ValueError, "got a copy"),
        (lambda module: [se.View("qkv", lambda w: w * 1)], ValueError, "got a copy"),
    ],
)  # fmt: skip
def test_views_that_do_not_fit(views, error, message):
    """Catches a view whose values would be written into a copy, or an error from deep inside."""
    se.register_layer(Fused, views)
    model = nn.Sequential(nn.Linear(4, 4), Fused())
    before = model[0].weight.detach().clone()
    with pytest.raises(error, match=message):
        se.prune(model)
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize(
    ("kind", "views", "message"),
    [(int, fused_views, "kind: .*int"), (Fused(), fused_views, "kind: "), (Fused, 3, "views: .*3")],
)
def test_bad_registration(kind, views, message):
    """Catches a registration that only fails when a model is pruned."""
    with pytest.raises(TypeError, match=message):
        se.register_layer(kind, views)


def test_split_into_equal_and_unequal_parts():
    """Catches a fused projection that is pruned as one though asked otherwise, parts of the wrong
    rows, and output features of Conv1D taken for inputs."""
    model = nn.ModuleDict({"qkv": nn.Linear(4, 12), "c_attn": Conv1D(8, 4), "fc": nn.Linear(4, 12)})
    split = {"*qkv": ("q", "k", "v"), "c_attn.weight": {"q": 4, "k": 2, "v": 2}}
    layers = layers_of(model, split=split)
    assert list(layers) == [
        "qkv.weight[q]", "qkv.weight[k]", "qkv.weight[v]",
        "c_attn.weight[q]", "c_attn.weight[k]", "c_attn.weight[v]", "fc.weight",
    ]  # fmt: skip
    assert torch.equal(layers["qkv.weight[k]"].matrices(), model["qkv"].weight[4:8])
    assert torch.equal(layers["c_attn.weight[k]"].matrices(), model["c_attn"].weight[:, 4:6].T)
    select = se.Select(split={**split, "nope": ("a", "b")})
    report = se.prune(model, se.Recipe(select=select), 0.5)
    assert len(report.layers) == 7
    assert report.unmatched == ["split 'nope'"]
    for rows in model["qkv"].weight.chunk(3):
        assert (rows != 0).sum() == 8


@pytest.mark.parametrize(
    ("split", "error", "message"),
    [
        ({"0": ("a", "b", "c")}, ValueError, "make up the 8 rows of 0.weight"),
        ({"0": {"a": 4, "b": 5}}, ValueError, "make up the 8 rows of 0.weight"),
        ({"1": ("a", "b")}, ValueError, "split: expected one matrix; 1.weight is a batch"),
        ({"0": ("a", "a")}, TypeError, "split: expected a dictionary"),
        ({"0": {"a": -1, "b": 9}}, TypeError, "split: expected a dictionary"),
        ({"0": 2}, TypeError, "split: expected a dictionary"),
        (["0"], TypeError, "split: expected a dictionary"),
    ],
)
def test_split_that_does_not_fit(split, error, message):
    """Catches parts that leave rows out, or twice the same name, which would share their draws."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Conv1d(4, 4, 2, groups=2))
    before = model[0].weight.detach().clone()
    with pytest.raises(error, match=message):
        se.prune(model, se.Recipe(select=se.Select(split=split)))
    assert torch.equal(model[0].weight, before)


# Batches


def test_magnitudes_of_a_batch_have_one_budget():
    """Catches a batch pruned group by group, which keeps small entries of a small group."""
    conv = nn.Conv2d(4, 6, 3, groups=2)
    conv.weight.data[:3] *= 1e-6
    before = conv.weight.detach().clone()
    report = se.prune(conv, sparsity=0.5)
    assert report.layers[0].shape == (6, 2, 3, 3)
    assert torch.equal(conv.weight, se.sparsify(before, sparsity=0.5).weight)
    assert not conv.weight[:3].any()
    se.finalize(conv)
    conv.weight.data.copy_(before)
    se.prune(conv, se.Recipe(budget=se.Uniform(0.5, group="row")))
    assert ((conv.weight != 0).flatten(1).sum(1) == 9).all()


def test_spectral_scores_of_a_batch_are_of_each_matrix():
    """Catches a low rank taken of the stacked matrices, and draws that the matrices share."""
    conv = nn.Conv2d(8, 12, 3, groups=2)
    before = conv.weight.detach().clone()
    method = se.Principal(rank=2, law="l1")
    report = se.prune(conv, method, 0.5, seed=5)
    for i in range(2):
        rows = slice(6 * i, 6 * i + 6)
        stream = stream_id(f"weight[{i}]")
        alone = se.sparsify(before[rows], method, 0.5, seed=5, stream=stream)
        assert torch.equal(conv.weight[rows], alone.weight)
    assert report.layers[0].nnz == int((conv.weight != 0).sum())
    assert report.layers[0].rank == 2


@pytest.mark.parametrize(
    ("largest", "drawn"),
    [
        (se.Principal(rank=4, mixture=0.5), se.Principal(law="l1", rescale=False)),
        (se.Aligned(rank=4), None),
    ],
)
def test_depthwise_filters_share_a_budget(largest, drawn):
    """Catches depthwise filters that are each cut to one entry, where the low rank of a single
    row says nothing."""
    torch.manual_seed(0)
    conv = nn.Conv2d(32, 32, 3, groups=32)
    before = conv.weight.detach().clone()
    se.prune(conv, largest, 0.9)
    assert torch.equal(conv.weight, se.sparsify(before, sparsity=0.9).weight)
    if drawn is not None:
        se.finalize(conv)
        conv.weight.data.copy_(before)
        se.prune(conv, drawn, 0.9, seed=3)
        by_size = se.Randomized(law="l1", rescale=False)
        alone = se.sparsify(before, by_size, 0.9, seed=3, stream=stream_id("weight"))
        assert torch.equal(conv.weight, alone.weight)


def test_errors_of_a_batch():
    """Catches errors measured on a batch as if it were one matrix: they are those of the matrix
    with the groups as diagonal blocks."""
    torch.manual_seed(0)
    conv = nn.Conv1d(6, 9, 2, groups=3)
    conv.weight.data[3:6] *= 5
    before = conv.weight.detach().reshape(3, 3, 4).clone()
    [row] = se.prune(conv, sparsity=0.5, measure=True).layers
    after = conv.weight.detach().reshape(3, 3, 4)
    expected = se.errors(torch.block_diag(*before), torch.block_diag(*after))
    assert row.spectral == pytest.approx(expected.spectral)
    assert row.frobenius == pytest.approx(expected.frobenius)
    alone = [se.errors(A, S).mean_singular_value for A, S in zip(before, after, strict=True)]
    assert row.singular_values == pytest.approx(np.mean(alone))


def test_refit_of_a_batch_is_of_each_matrix():
    """Catches one scalar for all groups, which restores the largest sigma_1 only."""
    torch.manual_seed(0)
    conv = nn.Conv1d(6, 8, 3, groups=2)
    conv.weight.data[4:] *= 10
    before = conv.weight.detach().reshape(2, 4, 9).clone()
    se.prune(conv, se.Recipe(refit=se.Scale()), 0.5)
    after = conv.weight.detach().reshape(2, 4, 9)
    assert torch.allclose(
        torch.linalg.matrix_norm(after, 2), torch.linalg.matrix_norm(before, 2), rtol=2e-3
    )
