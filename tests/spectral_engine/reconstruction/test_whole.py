"""A pruned model trained as a whole towards the dense one."""

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import nn

import spectral_engine as se
from spectral_engine.reconstruction.report import WHOLE
from spectral_engine.reconstruction.whole import _divergence

TOKENS, WIDTH = 12, 16


@dataclass
class Output:
    """What a language model gives: logits, and something that is not fitted."""

    logits: torch.Tensor
    hidden: torch.Tensor


class Language(nn.Module):
    """An embedding that is also the head's weight, two layers, and logits by name."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(TOKENS, WIDTH)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 32), nn.Tanh(), nn.Linear(32, WIDTH)) for _ in range(2)
        )
        self.head = nn.Linear(WIDTH, TOKENS, bias=False)
        self.head.weight = self.table.weight

    def forward(self, input_ids, attention_mask=None):
        x = self.table(input_ids)
        for block in self.blocks:
            x = x + block(x)
        return Output(self.head(x), x)


def tokens(count, seed=1):
    torch.manual_seed(seed)
    return [{"input_ids": torch.randint(TOKENS, (4, 8))} for _ in range(count)]


def divergence(model, dense, data):
    """By NumPy, in float64."""
    total, count = 0.0, 0
    for batch in data:
        with torch.no_grad():
            wanted, found = (
                log_softmax(one(**batch).logits.double().numpy(), -1) for one in (dense, model)
            )
        total += float((np.exp(wanted) * (wanted - found)).sum())
        count += wanted[..., 0].size
    return total / count


def pruned(model, sparsity=0.6):
    torch.manual_seed(0)
    dense = model()
    sparse = copy.deepcopy(dense)
    se.prune(sparse, "magnitude", sparsity, targets=["Linear"], ignore="head*", progress=False)
    return sparse, dense


def test_the_divergence_of_unseen_batches_falls_and_what_is_fixed_stays():
    """Catches a loss of the wrong sign or the wrong way round, a zero that comes back, a shared
    table that is trained, a dense model that is changed, and gradients left behind."""
    sparse, dense = pruned(Language)
    zero = {name: p == 0 for name, p in sparse.named_parameters() if name.startswith("blocks")}
    table, kept = sparse.table.weight.clone(), copy.deepcopy(dense.state_dict())
    held = tokens(6, seed=3)
    before = divergence(sparse, dense, held)
    report = se.reconstruct(
        sparse, dense, tokens(24), steps=0, whole=150, whole_rate=0.02, progress=False
    )
    assert divergence(sparse, dense, held) < 0.6 * before, report
    assert report.blocks == []
    assert report.whole is not None
    assert report.whole.kept
    assert report.whole.name == WHOLE
    for name, where in zero.items():
        if name.endswith("weight"):
            assert bool((sparse.get_parameter(name)[where] == 0).all()), name
    assert torch.equal(sparse.table.weight, table)
    assert all(torch.equal(x, kept[name]) for name, x in dense.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in sparse.parameters())


def test_the_divergence_is_numpys():
    """Catches a sum over the wrong axis, a mean over classes, and the divergence the other way."""
    torch.manual_seed(5)
    found, wanted = torch.randn(2, 3, 7), torch.randn(2, 3, 7)

    class All:
        def of(self, *_):
            return None

    a, b = (log_softmax(x.double().numpy(), -1) for x in (found, wanted))
    expected = (np.exp(b) * (b - a)).sum(-1).mean()
    np.testing.assert_allclose(float(_divergence(found, wanted, All())), expected, rtol=1e-5)


def test_one_layer_comes_to_the_least_squares_of_its_mask():
    """Catches a trained entry that the mask forbids, or a step that ends beside the optimum: the
    oracle solves each row on its kept columns by NumPy."""
    torch.manual_seed(0)
    dense = nn.Linear(10, 4)
    sparse = copy.deepcopy(dense)
    se.prune(sparse, "magnitude", 0.5, progress=False)
    mix = torch.randn(10, 10) * 0.4 + torch.eye(10)
    data = [torch.randn(400, 10) @ mix]
    se.reconstruct(sparse, dense, data, steps=0, whole=1500, whole_rate=0.05, progress=False)
    x = np.hstack([data[0].double().numpy(), np.ones((400, 1))])
    wanted = dense(data[0]).detach().double().numpy()
    for row in range(4):
        kept = np.append(sparse.weight[row].detach().numpy() != 0, True)
        best = np.linalg.lstsq(x[:, kept], wanted[:, row], rcond=None)[0]
        found = np.append(sparse.weight[row].detach().numpy(), sparse.bias[row].detach().numpy())
        np.testing.assert_allclose(found[kept], best, atol=2e-3)
        assert (found[~kept] == 0).all()


def test_hidden_positions_do_not_count():
    """Catches padding that is trained on: two runs that differ in hidden tokens alone agree."""
    results = []
    for fill in (0, 5):
        sparse, dense = pruned(Language)
        data = tokens(6)
        for batch in data:
            mask = torch.ones_like(batch["input_ids"])
            mask[:, 5:] = 0
            batch["input_ids"] = batch["input_ids"].masked_fill(mask == 0, fill)
            batch["attention_mask"] = mask
        se.reconstruct(sparse, dense, data, steps=0, whole=6, whole_rate=0.01, progress=False)
        results.append(sparse.blocks[0][0].weight)
    torch.testing.assert_close(results[0], results[1])


def test_what_does_worse_on_the_batches_apart_is_not_taken_over():
    """Catches a model that is replaced by one that a far too large step has ruined."""
    sparse, dense = pruned(Language)
    before = copy.deepcopy(sparse.state_dict())
    report = se.reconstruct(
        sparse, dense, tokens(8), steps=0, whole=3, whole_rate=1.0, progress=False
    )
    assert report.whole is not None
    assert not report.whole.kept
    assert "did not fall" in report.line()
    assert all(torch.equal(x, before[name]) for name, x in sparse.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prune_does_it_by_a_recipe(dtype):
    """Catches a recipe whose reconstruction is not carried out, or not in half precision."""
    torch.manual_seed(0)
    model = Language().to(dtype)
    dense = copy.deepcopy(model)
    fit = se.Reconstruction(steps=0, whole=40, whole_rate=0.02)
    recipe = se.Recipe(budget=se.Uniform(0.6), reconstruction=fit)
    report = se.prune(model, recipe, calibration=tokens(16), targets=["Linear"], progress=False)
    assert report.reconstruction is not None
    assert report.reconstruction.whole.kept
    plain = copy.deepcopy(dense)
    se.prune(plain, "magnitude", 0.6, targets=["Linear"], progress=False)
    held = tokens(4, seed=3)
    assert divergence(model, dense, held) < divergence(plain, dense, held)
    assert model.blocks[0][0].weight.dtype == dtype


def test_a_model_of_one_output_is_fitted_by_its_squared_error():
    """Catches an output without a name that is left out, of a recurrent model in two tensors."""
    torch.manual_seed(0)
    dense = nn.GRU(6, 8, batch_first=True)
    sparse = copy.deepcopy(dense)
    se.prune(sparse, "magnitude", 0.5, progress=False)
    torch.manual_seed(2)
    data, held = ([torch.randn(8, 12, 6) for _ in range(n)] for n in (16, 4))

    def error():
        with torch.no_grad():
            return sum(float((sparse(x)[0] - dense(x)[0]).square().mean()) for x in held)

    before = error()
    se.reconstruct(sparse, dense, data, steps=0, whole=100, whole_rate=0.05, progress=False)
    assert error() < 0.9 * before
