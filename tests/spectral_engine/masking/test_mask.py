"""The mask itself: its bits, what it makes zero, what it is listed for."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import spectral_engine as se
from tests.support.masked_models import MASKED, check, kept_by, mlp, net


@settings(max_examples=40)
@given(shape=st.lists(st.integers(1, 9), min_size=2, max_size=4), seed=st.integers(0, 99))
def test_bits_are_packed_and_unpacked(shape, seed):
    """Catches bits in another order, a last byte cut off, and more than a bit an entry."""
    kept = torch.from_numpy(np.random.default_rng(seed).random(shape) < 0.5)
    parameter = nn.Parameter(torch.ones(shape))
    mask = se.Mask.of(parameter, kept)
    assert torch.equal(mask.unpack(), kept)
    assert mask.nbytes == -(-kept.numel() // 8)
    assert np.array_equal(mask.packed.numpy(), np.packbits(kept.numpy(), bitorder="little"))
    assert mask.sparsity == pytest.approx(float((~kept).double().mean()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_only_what_is_not_kept_becomes_zero(dtype, layout):
    """Catches NaN that survives, bits of kept values changed, and entries taken in memory order."""
    values = torch.randn(3, 4, 5, 2).to(dtype)
    values[0, 0] = float("nan")
    values[1, 1] = -0.0
    kept = torch.rand(values.shape) < 0.5
    parameter = nn.Parameter(values.clone().to(memory_format=layout))
    version = parameter._version
    se.Mask.of(parameter, kept).apply()
    expected = torch.where(kept, values, torch.zeros((), dtype=dtype))
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[values.itemsize]
    assert torch.equal(parameter.detach().contiguous().view(integer), expected.view(integer))
    assert parameter._version > version  # autograd notices a stale backward pass


def test_masks_are_listed_with_every_pruned_parameter():
    """Catches a pruned weight without a mask, a shared one listed twice, or a mask of one gate
    taken for that of the whole parameter."""
    model = net()
    se.prune(model, sparsity=0.5, targets="*", ignore="gru.weight_ih_l0[reset]")
    found = se.masks(model)
    assert set(found) == MASKED
    for name, mask in found.items():
        weight = model.get_parameter(name)
        assert mask.parameter is weight
        assert torch.equal(mask.unpack(), weight != 0)
    assert found["gru.weight_ih_l0"].unpack()[:8].all()
    assert "sparsity=0.5" in repr(found["body.0.weight"])


def test_masks_can_be_declined():
    """Catches masks where none were asked for."""
    model = mlp()
    se.prune(model, targets="*", masks=False)
    assert se.masks(model) == {}
    assert not any("_spectral_masks" in module.__dict__ for module in model.modules())


def test_masks_take_one_bit_an_entry():
    """Catches masks that grow a pickled model by more than 1/32 of its float32 size."""
    model = mlp(2048)
    plain = len(pickle.dumps(model))
    entries = sum(p.numel() for p in model.parameters())
    se.prune(model, sparsity=0.5, targets="*")
    assert sum(mask.nbytes for mask in se.masks(model).values()) <= entries / 8
    assert len(pickle.dumps(model)) - plain <= 4 * entries / 32 + 2500


def test_parameters_of_one_memory_are_masked_together():
    """Catches an optimizer that revives zeros through another parameter of the same memory."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight.data = model[0].weight.data
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(3, 8)).sum().backward()
    optimizer.step()
    se.prune(model, sparsity=0.5, targets="*")
    found = se.masks(model)
    assert set(found) == {"0.weight", "1.weight"}
    assert found["0.weight"].packed.data_ptr() == found["1.weight"].packed.data_ptr()
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(3, 8)).sum().backward()
        optimizer.step()
    check(model, kept_by(model))
