"""Masks are let go: by finalize, and with their model."""

import gc
import pickle
import weakref

import torch
from torch import nn

import spectral_engine as se
from tests.support.masked_models import mlp, net, train, zeros


def test_finalize_leaves_plain_parameters():
    """Catches a hook that is left behind, a class from this package in the pickle, lost zeros."""
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    train(model, optimizer)
    se.prune(model, sparsity=0.5)
    held = se.masks(model)
    before = zeros(model)
    se.finalize(model)
    assert se.masks(model) == {}
    for name, pruned in before.items():
        assert torch.equal(model.get_parameter(name) == 0, pruned)
    for module, fresh in zip(model.modules(), net().modules(), strict=True):
        assert module.__dict__.keys() == fresh.__dict__.keys()
        assert type(module).__module__.startswith(("torch.", "test_masks", "tests."))
        assert not module._load_state_dict_post_hooks
    for parameter in model.parameters():
        assert type(parameter) is nn.Parameter
        assert not parameter._backward_hooks
        assert parameter.__dict__ == {}
    assert b"spectral_engine" not in pickle.dumps(model.body)
    train(model, optimizer)
    assert any(model.get_parameter(name)[pruned].any() for name, pruned in before.items())
    assert held  # released masks that someone still holds do nothing


def test_a_model_is_freed():
    """Catches masks that keep a model alive: by a registry, a hook or a cycle."""
    model = mlp()
    se.prune(model, sparsity=0.5)
    parameter, mask = (weakref.ref(x) for x in (model[0].weight, se.masks(model)["0.weight"]))
    gc.collect()
    gc.disable()
    try:
        del model
        assert parameter() is None
        assert mask() is None
    finally:
        gc.enable()
