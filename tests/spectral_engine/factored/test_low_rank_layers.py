"""Layers of a sparse weight and two factors: as modules, in training, in files, compressed."""

import copy
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import spectral_engine as se

RECIPE = se.Recipe(low_rank=se.LowRank(3))
LAYERS = {
    "linear": (lambda: nn.Linear(24, 20), (5, 24)),
    "linear, no bias": (lambda: nn.Linear(24, 20, bias=False), (2, 3, 24)),
    "conv1d": (lambda: nn.Conv1d(8, 20, 5, stride=2, padding=2, dilation=2), (3, 8, 30)),
    "conv2d": (lambda: nn.Conv2d(6, 20, 3, padding=1, padding_mode="circular"), (3, 6, 9, 8)),
    "conv2d, same": (lambda: nn.Conv2d(6, 20, (3, 5), padding="same"), (6, 9, 8)),
    "conv2d, pointwise": (lambda: nn.Conv2d(24, 20, 1, stride=2), (3, 24, 9, 8)),
    "conv3d": (lambda: nn.Conv3d(4, 20, 2), (2, 4, 5, 4, 3)),
}


def pruned(name: str) -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    """A dense layer pruned with factors, an input, and what S + L R gives as a dense layer."""
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer, x = make().eval(), torch.randn(shape)
    model = nn.Sequential(layer)
    weight = layer.weight.detach().clone()
    se.prune(model, RECIPE, 0.5)
    dense = make().eval()
    state = {"weight": layer.merged()} | ({} if layer.bias is None else {"bias": layer.bias})
    dense.load_state_dict(state)
    assert 0.05 < (layer.merged() - weight).norm() / weight.norm() < 0.6
    return model, x, dense(x)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_computes_its_sum_sparse_compressed_and_merged(name):
    """Catches factors that are convolved with another stride, padding or dilation than the weight,
    that a compressed layer loses, or that merging adds twice."""
    model, x, expected = pruned(name)
    assert type(model[0]).__name__.startswith("LowRank")
    assert close(model(x), expected)
    report = se.compress(model)
    assert type(model[0]).__name__.startswith("SparseLowRank")
    assert close(model(x), expected)
    held = sum(part.nbytes for key, part in model.state_dict().items() if "bias" not in key)
    assert report.weights[0].bytes == held
    assert se.decompress(model) == 1
    assert close(model(x), expected)
    assert se.merge_low_rank(model) == 1
    assert type(model[0]) is type(LAYERS[name][0]())
    assert not model[0]._forward_pre_hooks
    assert close(model(x), expected)


def test_the_budget_counts_both():
    """Catches factors that come on top of the budget, or a report that leaves them out."""
    model, _, _ = pruned("linear")
    layer = model[0]
    stored = int(torch.count_nonzero(layer.weight)) + layer.left.numel() + layer.right.numel()
    assert stored == 24 * 20 // 2
    report = se.prune(nn.Sequential(nn.Linear(24, 20)), RECIPE, 0.5)
    assert (report.nnz, report.layers[0].low_rank, report.sparsity) == (stored, 3, 0.5)
    # At the same budget values and bits take the same bytes with factors as without.
    alone, both = (nn.Sequential(nn.Linear(24, 20)) for _ in range(2))
    se.prune(alone, "magnitude", 0.5)
    se.prune(both, RECIPE, 0.5)
    assert se.compress(alone).bytes == se.compress(both).bytes


def test_it_trains_and_is_copied_with_its_zeros():
    """Catches factors that are not trained, zeros that training revives, a copy or pickle that
    forgets its class, and a checkpoint that does not load."""
    model, x, _ = pruned("linear")
    zeros = model[0].weight == 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    before = model[0].left.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    assert torch.equal(model[0].weight == 0, zeros)
    assert not torch.equal(model[0].left, before)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(x), model(x))
    fresh = nn.Sequential(nn.Linear(24, 20))
    assert se.expect_low_rank(fresh, model.state_dict()) == 1
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x))
    assert se.expect_low_rank(fresh, model.state_dict()) == 0
    assert set(se.mask_zeros(fresh)) == {"0.weight"}


def test_a_compressed_state_loads():
    """Catches factors that a compressed module does not take from a state dict."""
    model, x, expected = pruned("conv2d")
    se.compress(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].left.zero_()
    assert not close(other(x), expected)
    other.load_state_dict(model.state_dict())
    assert close(other(x), expected)


def test_a_compressed_file_keeps_the_factors(tmp_path):
    """Catches a file whose factors are lost or changed on the way."""
    model, _, _ = pruned("linear")
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    se.compress_file(tmp_path / "model.safetensors", tmp_path / "small.safetensors")
    se.decompress_file(tmp_path / "small.safetensors", tmp_path / "again.safetensors")
    again = (tmp_path / "again.safetensors").read_bytes()
    assert again == (tmp_path / "model.safetensors").read_bytes()


def test_fused_kernels_do_not_pass_the_factors_by():
    """Catches torch's fused TransformerEncoderLayer, which takes the weight and not the layer."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    model = nn.TransformerEncoder(layer, 2).eval()
    se.prune(model, RECIPE, 0.4)
    x = torch.randn(2, 5, 16)
    slow = model(x)
    with torch.no_grad():
        fast = model(x)
        assert close(fast, slow)
        se.compress(model)
        assert close(model(x), slow)
        se.decompress(model)
        assert se.merge_low_rank(model) == 4
        assert close(model(x), slow)


def test_what_cannot_hold_factors_is_sparse_alone_and_said():
    """Catches a shared weight, a gate, a grouped convolution with factors that no forward adds."""
    torch.manual_seed(0)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(12, 12), nn.Linear(12, 12)
            self.b.weight = self.a.weight
            self.gru = nn.GRU(12, 12)
            self.grouped = nn.Conv1d(12, 12, 3, groups=2)
            self.plain = nn.Linear(24, 24)

    model = Model()
    report = se.prune(model, RECIPE, 0.5)
    assert [layer.low_rank for layer in report.layers if layer.name == "plain.weight"] == [3]
    assert all(layer.low_rank is None for layer in report.layers if layer.name != "plain.weight")
    assert all(layer.sparsity == 0.5 for layer in report.layers)
    said = str(report)
    for why in ("several modules share it", "of a GRU", "several groups"):
        assert why in said
    assert "a factor beside a sparse weight" in str(se.prune(model, "magnitude", 0.6))
    assert isinstance(model.plain, se.LowRankLinear)  # the sparse part was pruned on


def test_an_error_brings_back_the_plain_layers():
    """Catches a layer that keeps its factors after a pruning that failed."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 20), nn.Linear(20, 20))
    before, x = copy.deepcopy(model), torch.randn(3, 24)

    def fail(row: se.LayerReport) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        se.prune(model, RECIPE, 0.5, progress=fail)
    assert [type(layer) for layer in model] == [nn.Linear, nn.Linear]
    assert torch.equal(model(x), before(x))
    assert model.state_dict().keys() == before.state_dict().keys()


def test_calibrated_layers_see_the_factors_before_them():
    """Catches a sequential calibration that runs the sparse parts without their factors."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 20), nn.Linear(20, 20))
    batches = [torch.randn(64, 24) + 1.0 for _ in range(2)]
    recipe = se.Recipe(refit=se.LeastSquares(bias_correction=True), low_rank=se.LowRank(3))
    mean = model(torch.cat(batches)).mean(0)
    se.prune(model, recipe, 0.6, calibration=se.Calibration(batches, sequential=True))
    assert torch.allclose(model(torch.cat(batches)).mean(0), mean, atol=1e-4)


def test_what_is_refused_is_named(tmp_path):
    """Catches a file or a schedule that would lose the factors, and factors that fit nothing."""
    torch.save(nn.Linear(8, 8).state_dict(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match="low_rank puts factors beside a weight"):
        se.prune_file(tmp_path / "a.pt", tmp_path / "b.pt", RECIPE)
    with pytest.raises(ValueError, match="low_rank splits it once"):
        se.Pruner(nn.Linear(8, 8), se.OneShot(0.5), RECIPE)
    batches = [torch.randn(8, 8)]
    with pytest.raises(ValueError, match="low_rank fits a layer to its own inputs"):
        se.prune(
            nn.Linear(8, 8), se.Recipe(refit=se.LeastSquares(), low_rank=se.LowRank(1)), 0.5,
            calibration=se.Calibration(batches, sequential=True, asymmetric=True),
        )  # fmt: skip
    factors = {"0.left": torch.zeros(4, 2), "0.right": torch.zeros(2, 9)}
    with pytest.raises(ValueError, match=r"expected factors \(4, r\) and \(r, 8\)"):
        se.expect_low_rank(nn.Sequential(nn.Linear(8, 4)), factors)
    with pytest.raises(ValueError, match="the model has a GRU there"):
        se.expect_low_rank(nn.Sequential(nn.GRU(8, 4)), factors)
