"""Weights that are the same memory, and weights whose memory cannot be changed entry by entry."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import spectral_engine as se
from spectral_engine.layers.storage import entries_as, memory_of

RECIPES = {
    "magnitude": (se.Recipe(), 0.5),
    "row": (se.Recipe(budget=se.Uniform(0.75, group="row")), None),
    "2:4": (se.Recipe(budget=se.Pattern("2:4")), None),
    "randomized": (se.Recipe(se.Randomized()), 0.75),
    "global": (se.Recipe(budget=se.Global(0.75)), None),
}


class Autoencoder(nn.Module):
    """The decoder's weight is the encoder's transposed, in the same memory."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enc, self.dec = nn.Linear(64, 32), nn.Linear(32, 64)
        self.dec.weight = nn.Parameter(self.enc.weight.t())

    def forward(self, x):
        return self.dec(self.enc(x).relu())


@pytest.mark.parametrize("name", RECIPES)
def test_a_transposed_tie_is_one_weight(name):
    """Catches a weight tied by transposition that is pruned twice, the second time among what the
    first one left, and counted twice."""
    recipe, sparsity = RECIPES[name]
    model, alone = Autoencoder(), nn.ModuleDict({"enc": Autoencoder().enc})
    report = se.prune(model, recipe, sparsity, seed=3)
    se.prune(alone, recipe, sparsity, seed=3)
    assert torch.equal(model.enc.weight, alone["enc"].weight)
    [row] = report.layers
    assert (row.name, row.shared_with, row.size) == ("enc.weight", ("dec.weight",), 64 * 32)
    assert row.nnz == int(torch.count_nonzero(model.dec.weight))


def test_a_transposed_tie_is_calibrated_on_the_inputs_of_its_rows():
    """Catches the inputs of the decoder, of 32 features, taken for those of the 64 columns."""
    x = torch.randn(256, 64)
    report = se.prune(Autoencoder(), "wanda", 0.5, calibration=[x])
    assert [(row.name, row.samples) for row in report.layers] == [("enc.weight", 256)]


def test_both_parameters_of_a_transposed_tie_are_masked():
    """Catches a mask laid over the transpose as it is, and an optimizer that revives zeros through
    the other parameter."""
    model = Autoencoder()
    optimizer = torch.optim.AdamW(model.parameters(), 0.05, weight_decay=0.1)
    for step in range(4):
        if step == 1:
            se.prune(model, sparsity=0.5)
            kept = (model.enc.weight != 0).clone()
        optimizer.zero_grad()
        (model(torch.randn(8, 64)) - 1).square().mean().backward()
        optimizer.step()
    assert not model.enc.weight[~kept].any()
    assert model.enc.weight[kept].any()
    found = se.masks(model)
    assert torch.equal(found["enc.weight"].unpack(), kept)
    assert torch.equal(found["dec.weight"].unpack(), kept.t())


@given(st.permutations(range(3)), st.integers(0, 99))
def test_entries_of_one_weight_found_in_another(order, seed):
    """Catches bits that go to other places of the memory than the entries they are of."""
    torch.manual_seed(seed)
    weight = torch.randn(2, 3, 4)
    other = weight.permute(*order)
    assert memory_of(weight) == memory_of(other) == memory_of(weight.view(6, 4))
    assert memory_of(weight) != memory_of(weight[:1])
    kept = weight > 0
    assert torch.equal(entries_as(kept, weight, other), other > 0)
    assert torch.equal(entries_as(kept, weight, weight.view(6, 4)), weight.view(6, 4) > 0)


def test_the_same_memory_in_other_shapes_is_one_weight():
    """Catches a pointwise convolution that shares a linear layer's memory and is pruned again."""
    model = nn.Sequential(nn.Linear(8, 6), nn.Conv2d(8, 6, 1))
    model[1].weight = nn.Parameter(model[0].weight.detach().view(6, 8, 1, 1))
    report = se.prune(model, sparsity=0.5)
    assert [(row.name, row.nnz) for row in report.layers] == [("0.weight", 24)]
    assert set(se.masks(model)) == {"0.weight", "1.weight"}


def int8_wrapper(weight):
    """A tensor without memory of its own, as torchao makes it."""

    class Int8(torch.Tensor):
        @staticmethod
        def __new__(cls, data):
            return torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=torch.float32)

        def __init__(self, data):
            self.data8 = data

        @classmethod
        def __torch_dispatch__(cls, func, types, args, kwargs=None):
            assert func is torch.ops.aten.detach.default, func
            return cls(args[0].data8)

    return nn.Parameter(Int8((100 * weight).to(torch.int8)), requires_grad=False)


def sparse_rows(weight):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, that the layout is in beta
        return nn.Parameter(weight.to_sparse_csr())


KINDS = {
    "Int8": int8_wrapper,
    "torch.sparse_csr": sparse_rows,
    "torch.sparse_coo": lambda weight: nn.Parameter(weight.to_sparse()),
    "torch._mkldnn": lambda weight: nn.Parameter(weight.to_mkldnn()),
}


def of_kind(kind: str) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    model[0].weight = KINDS[kind](model[0].weight.detach())
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_weights_without_plain_memory_are_named(kind):
    """Catches torch's own message about storage, also for a layer that is ignored; and layers
    before it that are pruned when it is refused."""
    calls = {
        "prune": lambda model: se.prune(model, sparsity=0.5),
        "mask_zeros": se.mask_zeros,
    }
    for call in calls.values():
        model = of_kind(kind)
        before = model[2].weight.detach().clone()
        with pytest.raises(ValueError, match=rf"model: 0\.weight .*{kind}.*name it in ignore"):
            call(model)
        assert torch.equal(model[2].weight, before)
    for choice in ({"ignore": "0"}, {"targets": "2"}):
        model = of_kind(kind)
        weight = model[0].weight
        report = se.prune(model, sparsity=0.5, **choice)
        assert [row.name for row in report.layers] == ["2.weight"]
        assert model[0].weight is weight
        assert {one.name for one in report.skipped} == {"0.weight"}
    with pytest.raises(ValueError, match=rf"model: 0\.weight .*{kind}"):
        se.apply_masks(of_kind(kind), {"0.weight": torch.ones(8, 16, dtype=torch.bool)})


def expanded() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(10, 5), nn.Linear(5, 5))
    model[1].weight = nn.Parameter(torch.randn(1, 5).expand(5, 5))
    return model


def inference() -> nn.Sequential:
    with torch.inference_mode():
        return nn.Sequential(nn.Linear(10, 5), nn.Linear(5, 5))


def half_inference() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(10, 5), nn.Linear(5, 5))
    with torch.inference_mode():
        model[1] = nn.Linear(5, 5)
    return model


def overlapping() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(10, 5), nn.Linear(10, 3))
    model[1].weight = nn.Parameter(model[0].weight.detach()[1:4])
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (expanded, r"several entries of 1\.weight are the same memory"),
        (inference, r"0\.weight is an inference tensor"),
        (half_inference, r"1\.weight is an inference tensor"),
        (overlapping, r"0\.weight and 1\.weight overlap in memory"),
    ],
)
@pytest.mark.parametrize("calibrated", [False, True])
def test_what_cannot_be_changed_entry_by_entry_leaves_all_as_it_is(make, message, calibrated):
    """Catches a model of which a part is pruned when torch refuses to write, and an entry of two
    weights that is pruned twice."""
    model = make()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    given = {"calibration": [torch.randn(32, 10)]} if calibrated else {}
    with pytest.raises(ValueError, match=f"model: .*{message}"):
        se.prune(model, sparsity=0.5, **given)
    assert all(map(torch.equal, model.parameters(), before))
    assert se.masks(model) == {}


def test_weights_side_by_side_in_one_memory_are_no_overlap():
    """Catches interleaved slices of one tensor refused, though they have no entry in common."""
    whole = torch.randn(6, 16)
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(8, 6))
    model[0].weight, model[1].weight = nn.Parameter(whole[:, :8]), nn.Parameter(whole[:, 8:])
    assert len(se.prune(model, sparsity=0.5).layers) == 2
    assert int((whole != 0).sum()) == 48


@pytest.mark.parametrize("several", [False, True])
def test_an_offloaded_model_is_refused_with_the_way_out(several):
    """Catches a model that accelerate holds on the disk, for which no weights can be loaded, told
    to load them."""
    model = nn.Sequential(nn.Linear(8, 4, device="meta"), nn.Linear(4, 2))
    hook = SimpleNamespace(offload=True)
    model[0]._hf_hook = SimpleNamespace(hooks=[hook]) if several else hook
    with pytest.raises(ValueError, match=r"0.weight is offloaded by accelerate .*prune_file"):
        se.prune(model, sparsity=0.5)
