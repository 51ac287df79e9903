"""Models compressed: the same outputs from values and bits, whatever torch does to modules."""

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune as torch_prune

import spectral_engine as se
from spectral_engine.checkpoints.sparse import forms
from spectral_engine.compression import operators
from tests.support.sparse_weights import DTYPES, equal_bits, pruned, weights

ALL = ["Linear", "Conv1d", "Embedding"]


class Network(nn.Module):
    """Every layer that becomes sparse."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 64)
        self.pointwise = nn.Conv1d(64, 64, 1, stride=2)
        self.convolution = nn.Conv1d(64, 64, 3, padding="same", padding_mode="circular", groups=2)
        self.first = nn.Linear(64, 128)
        self.second = nn.Linear(128, 16, bias=False)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        x = self.embedding(indices).transpose(1, 2)
        x = self.convolution(self.pointwise(x)).transpose(1, 2)
        return self.second(torch.relu(self.first(x)))


INDICES = torch.arange(30).reshape(3, 10)


def network(seed: int = 0, sparsity: float = 0.8) -> Network:
    torch.manual_seed(seed)
    model = Network()
    se.prune(model, "magnitude", sparsity, targets=ALL)
    return model


def compressed(seed: int = 0) -> tuple[Network, torch.Tensor, dict[str, torch.Tensor]]:
    """A compressed model, what its dense one gave, and that one's weights."""
    model = network(seed)
    expected = model(INDICES).detach()
    dense = {name: value.clone() for name, value in model.state_dict().items()}
    se.compress(model, targets=ALL)
    return model, expected, dense


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(found, expected, atol=1e-5)


def test_outputs_stay_and_weights_come_back():
    """Catches a layer that is left out, a stride, padding or group that is lost, another bit in a
    weight, and a dense copy that is kept."""
    model, expected, dense = compressed()
    sparse = (se.SparseLinear, se.SparseConv, se.SparseEmbedding)
    assert sum(isinstance(module, sparse) for module in model.modules()) == 5
    assert close(model(INDICES), expected)
    held = sum(one.nbytes for one in [*model.parameters(), *model.buffers()])
    assert held < 0.3 * sum(one.nbytes for one in dense.values())
    assert se.decompress(model) == 5
    assert all(equal_bits(value, dense[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


@settings(deadline=None, max_examples=60)
@given(weights().filter(lambda weight: weight.ndim == 2 and bool(weight.isfinite().all())))
def test_any_linear_layer(weight):
    """Catches a shape, a dtype or an empty row that the module does not take."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
    layer.weight.data = weight
    sparse = se.SparseLinear.from_dense(layer)
    x = torch.randn(3, weight.shape[1]).to(weight.dtype)
    tolerance = {2: 0.1, 4: 1e-4, 8: 1e-10}[weight.itemsize]
    wide = x.double() @ weight.double().T + layer.bias.double()
    assert torch.allclose(sparse(x).double(), wide, rtol=tolerance, atol=tolerance)
    assert equal_bits(sparse.weight, weight)
    assert equal_bits(sparse.to_dense().weight.detach(), weight)


def test_memory_is_that_of_the_file(tmp_path):
    """Catches a loaded model that takes over 5 % more than its file."""
    model = nn.Sequential(*[nn.Linear(512, 512, bias=False) for _ in range(4)])
    se.prune(model, "magnitude", 0.7)
    torch.save(model.state_dict(), tmp_path / "dense.pt")
    se.compress_file(tmp_path / "dense.pt", tmp_path / "small.safetensors")
    se.compress(model)
    model(torch.ones(1, 512))
    packed = [module.prepared.operator.packed for module in model]
    held = {
        array.data_ptr(): array.nbytes
        for one in packed
        for array in (one.values, one.bitmask, one.row_offsets)
    }
    held |= {one.data_ptr(): one.nbytes for one in model.buffers()}
    assert sum(held.values()) <= 1.05 * (tmp_path / "small.safetensors").stat().st_size


def test_copies_and_pickles():
    """Catches a copy that multiplies by the arrays of the original, and an operator in a pickle."""
    model, expected, _ = compressed()
    copied = copy.deepcopy(model)
    copied.second.compressed.mul_(2)
    assert close(copied(INDICES), 2 * expected)
    assert close(model(INDICES), expected)
    assert close(pickle.loads(pickle.dumps(model))(INDICES), expected)
    stored = io.BytesIO()
    torch.save(model, stored)
    stored.seek(0)
    assert close(torch.load(stored, weights_only=False)(INDICES), expected)


@pytest.mark.parametrize("inference", [False, True])
def test_changed_arrays(inference):
    """Catches a product by the arrays of before, where a layer only asks whether they changed."""
    with torch.inference_mode(inference):
        layer = nn.Linear(96, 40)
        layer.weight.data.mul_(torch.rand(40, 96) < 0.3)
        sparse, x = se.SparseLinear.from_dense(layer), torch.randn(5, 96)

        def right():
            return close(sparse(x), nn.functional.linear(x, sparse.weight, sparse.bias))

        assert right()
        if not inference:  # such tensors do not count their changes
            sparse.compressed.mul_(2)
            assert right()
            sparse.compressed.data = torch.randn_like(sparse.compressed)
            assert right()
        sparse.compressed = sparse.compressed + 1
        assert right()
        sparse.load_state_dict({"weight": torch.eye(40, 96), "bias": torch.zeros(40)})
        assert torch.equal(sparse(x), x[:, :40])


def test_compile_and_export():
    """Catches an operator that breaks the graph, lacks a fake, or needs the module in an exported
    program."""
    model, expected, _ = compressed()
    program = torch.export.export(model, (INDICES,))
    stored = io.BytesIO()
    torch.export.save(program, stored)
    stored.seek(0)
    loaded = torch.export.load(stored).module()
    assert close(loaded(INDICES), expected)
    assert close(loaded(INDICES), expected)
    torch._dynamo.reset()
    run = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert close(run(INDICES), expected)
    assert close(run(INDICES), expected)
    model.second.compressed.mul_(2)
    assert close(run(INDICES), 2 * expected)


def test_the_operators_keep_their_contracts():
    """Catches a fake of another shape or dtype, a missing gradient, and an aliased output."""
    layer = nn.Linear(16, 8)
    layer.weight.data = pruned(8, 16, sparsity=0.5)
    sparse = se.SparseLinear.from_dense(layer)
    arrays = (*sparse.arrays, sparse.rows, sparse.columns)
    # "test_aot_dispatch_dynamic" needs a compiler, and compiles nothing of ours.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    x = torch.randn(2, 16, requires_grad=True)
    torch.library.opcheck(operators.sparse_linear, (x, *arrays), test_utils=checks)
    g = torch.randn(2, 8, requires_grad=True)
    torch.library.opcheck(operators.sparse_linear_back, (g, *arrays), test_utils=checks)
    rows = torch.tensor([[1, 7], [1, 0]])
    torch.library.opcheck(operators.sparse_rows, (rows, *arrays), test_utils=checks)
    torch.library.opcheck(operators.sparse_dense, arrays, test_utils=checks)


def test_gradients_reach_the_input_and_the_bias_only():
    """Catches a gradient of another matrix, a second derivative that is lost, and a weight that is
    trained."""
    layer = nn.Linear(12, 5).double()
    layer.weight.data = pruned(5, 12, sparsity=0.6, dtype=torch.float64)
    sparse = se.SparseLinear.from_dense(layer)
    x = torch.randn(3, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(sparse, (x,))
    assert torch.autograd.gradgradcheck(sparse, (x,))
    assert [name for name, _ in sparse.named_parameters()] == ["bias"]
    sparse(x).sum().backward()
    assert torch.equal(sparse.bias.grad, torch.full((5,), 3.0, dtype=torch.float64))


@pytest.mark.parametrize("dtype", DTYPES)
def test_autocast_and_dtypes(dtype):
    """Catches an output of another dtype than a dense layer's."""
    model = nn.Sequential(nn.Linear(64, 8, bias=True))
    se.prune(model, "magnitude", 0.5)
    se.compress(model)
    x = torch.randn(2, 64)
    expected = torch.float64 if dtype == torch.float64 else torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x.to(dtype)).dtype == expected
    model.to(dtype)
    assert model[0].compressed.dtype == dtype
    assert model(x.to(dtype)).dtype == dtype


def test_state_dicts_of_every_form():
    """Catches a state dict that only loads where the number of values happens to be the same, a
    dense one that is refused, and parts of other matrices loaded."""
    model, expected, dense = compressed(seed=1)
    other = network(seed=2, sparsity=0.5)
    se.compress(other, targets=ALL)
    other.load_state_dict(model.state_dict())
    assert close(other(INDICES), expected)
    other.load_state_dict(dense)
    assert close(other(INDICES), expected)
    state = model.state_dict()
    layer = pruned(16, 128, sparsity=0.98)
    plan = forms.plan(layer)
    assert plan.form == "deltas"
    for name in [name for name in state if name.startswith("second.")]:
        del state[name]
    state |= {f"second.{part}": tensor for part, tensor in forms.encode(layer, plan).items()}
    other.load_state_dict(state)
    assert equal_bits(other.second.weight, layer)
    broken = model.state_dict()
    broken["second.compressed"] = broken["second.compressed"][1:]
    with pytest.raises(RuntimeError, match=r"second\.weight: bitmask: its ones and row_offsets"):
        other.load_state_dict(broken)
    del broken["second.bitmask"]
    with pytest.raises(RuntimeError, match=r"second\.weight: expected the parts of one form"):
        other.load_state_dict(broken)
    missing = {name: one for name, one in model.state_dict().items() if "second" not in name}
    with pytest.raises(RuntimeError, match=r"Missing key.*second\.compressed"):
        other.load_state_dict(missing)


def test_what_stays_dense_and_why():
    """Catches a layer replaced whose weight its module uses itself, one that would grow, and an
    embedding that nobody asked for."""
    model = nn.ModuleDict(
        {
            "attention": nn.MultiheadAttention(16, 2),
            "dense": nn.Linear(64, 64),
            "embedding": nn.Embedding(16, 64),
            "lstm": nn.LSTM(16, 16),
            "pruned": nn.Linear(64, 64),
        }
    )
    se.prune(model, "magnitude", 0.8, ignore="dense", targets=["*.weight*", "*in_proj*"])
    report = se.compress(model)
    assert [row.name for row in report.weights] == ["pruned.weight"]
    reasons = {one.name: one.reason for one in report.skipped}
    assert reasons["dense.weight"] == "values and bits would not be smaller"
    assert "NonDynamicallyQuantizableLinear" in reasons["attention.out_proj.weight"]
    assert "LSTM" in reasons["lstm.weight_ih_l0"]
    assert "an embedding" in reasons["embedding.weight"]
    assert report.bytes == sum(one.nbytes for one in [*model.parameters(), *model.buffers()])
    assert not se.masks(model).get("pruned.weight")


def test_tied_weights_stay_tied():
    """Catches a head and an embedding that become two copies, or one of them left behind."""
    model = nn.ModuleDict({"embed": nn.Embedding(32, 64), "head": nn.Linear(64, 32, bias=False)})
    model["head"].weight = model["embed"].weight
    se.prune(model, "magnitude", 0.7, targets="Embedding")
    dense = model["head"].weight.detach().clone()
    assert se.compress(model, ignore="nothing").weights == []
    se.compress(model, targets=["Embedding", "Linear"])
    assert model["head"].compressed is model["embed"].compressed
    assert equal_bits(model["embed"](torch.arange(32)), dense)
    se.decompress(model)
    assert model["head"].weight is model["embed"].weight
    assert equal_bits(model["head"].weight.detach(), dense)


def test_shared_modules_hooks_and_modes():
    """Catches a module used twice that becomes two, and a hook or the mode that is lost."""
    shared = nn.Linear(64, 64)
    model = nn.Sequential(shared, nn.ReLU(), shared).eval()
    se.prune(model, "magnitude", 0.7)
    calls = []
    shared.register_forward_hook(lambda *_: calls.append(1))
    se.compress(model)
    assert model[0] is model[2]
    assert not model[0].training
    model(torch.ones(1, 64))
    assert len(calls) == 2


def test_arguments_that_do_not_fit():
    """Catches a layer alone that cannot be replaced in place and is passed over without a word."""
    with pytest.raises(ValueError, match=r"se\.SparseLinear\.from_dense"):
        se.compress(nn.Linear(4, 4))
    with pytest.raises(TypeError, match="model: expected a torch"):
        se.compress("model")
    with pytest.raises(TypeError, match="model: expected a torch"):
        se.decompress("model")
    with pytest.raises(TypeError, match="to_dense"):
        se.decompress(se.SparseLinear.from_dense(nn.Linear(4, 4)))
    with pytest.raises(TypeError, match=r"layer: expected a torch\.nn\.Linear"):
        se.SparseLinear.from_dense(nn.Conv1d(1, 1, 1))
    embedding = se.SparseEmbedding.from_dense(nn.Embedding(4, 8))
    with pytest.raises(IndexError, match="expected 0 to 3"):
        embedding(torch.tensor([4]))


def test_weights_of_other_pruners():
    """Catches half of the zeros stored as values: a product with a mask leaves -0."""
    model = nn.Sequential(nn.Linear(64, 64))
    torch_prune.l1_unstructured(model[0], "weight", 0.75)
    torch_prune.remove(model[0], "weight")
    dense = model[0].weight.detach().clone()
    exact = copy.deepcopy(model)
    assert se.compress(exact).weights[0].sparsity < 0.7
    assert equal_bits(exact[0].weight, dense)
    assert se.compress(model, keep_negative_zero=False).weights[0].sparsity == 0.75
    assert torch.equal(model[0].weight, dense)


@given(st.lists(st.integers(0, 9), max_size=12))
@settings(deadline=None, max_examples=30)
def test_rows_of_an_embedding(indices):
    """Catches rows that are swapped, repeated ones made once, and no rows at all."""
    layer = nn.Embedding(10, 13)
    layer.weight.data = pruned(10, 13, sparsity=0.7)
    layer.weight.data[4] = 0.0
    wanted = torch.tensor(indices, dtype=torch.int64)
    found = se.SparseEmbedding.from_dense(layer)(wanted)
    assert equal_bits(found, layer.weight.detach()[wanted])
