"""A masked parameter that is replaced by another is noticed."""

import pytest
import torch
from torch import nn

import spectral_engine as se
from tests.support.masked_models import mlp


def replace_parameter(model):
    model[0].weight = nn.Parameter(torch.ones_like(model[0].weight))


def load_another_shape(model):
    model[0].weight = nn.Parameter(torch.ones(3, 3))
    model.load_state_dict({"0.weight": torch.ones(3, 3)}, strict=False)


def parametrize(model):
    nn.utils.parametrizations.weight_norm(model[0])


@pytest.mark.parametrize("change", [replace_parameter, load_another_shape, parametrize])
def test_a_replaced_parameter_is_noticed(change):
    """Catches a model that is silently dense after its masked parameter was replaced."""
    model = mlp()
    se.prune(model, sparsity=0.5)
    change(model)
    message = r"model: 0.weight was replaced after it was masked"
    with pytest.raises(ValueError, match=message):
        se.masks(model)
    before = model[2].weight.detach().clone()
    with pytest.raises(ValueError, match=message):
        se.prune(model, sparsity=0.9)
    assert torch.equal(model[2].weight, before)
    with pytest.raises(ValueError, match=message):
        se.apply_masks(model, {})
    se.finalize(model)
    assert se.masks(model) == {}
    se.prune(model, sparsity=0.9)


def test_mask_zeros_takes_over_from_a_replaced_parameter():
    """Catches an error that tells how to go on, by a way that is closed."""
    model = mlp()
    se.prune(model, sparsity=0.5)
    replace_parameter(model)
    model[0].weight.data[0] = 0
    assert torch.equal(se.mask_zeros(model)["0.weight"].unpack(), model[0].weight != 0)
    replace_parameter(model)
    assert set(se.mask_zeros(model)) == {"2.weight"}
