"""Masks from another model, and arguments that are refused."""

import pytest
import torch
from torch import nn

import spectral_engine as se
from tests.support.masked_models import check, kept_by, mlp, net


def test_masks_of_another_model():
    """Catches a winning ticket that cannot be carried to a fresh model, and masks that replace
    those of an earlier pruning."""
    model, fresh = net(), net()
    se.prune(model, sparsity=0.5, targets="*")
    expected = kept_by(model)
    found = se.apply_masks(fresh, se.masks(model))
    assert all(torch.equal(found[name].unpack(), expected[name]) for name in expected)
    check(fresh, expected)
    every_other = torch.arange(16 * 8).reshape(16, 8) % 2 == 0
    se.apply_masks(fresh, {"body.0.weight": every_other})
    both = every_other & expected["body.0.weight"]
    assert torch.equal(se.masks(fresh)["body.0.weight"].unpack(), both)
    assert torch.equal(fresh.body[0].weight != 0, both)
    se.apply_masks(fresh, {"head.weight": expected["embed.weight"]})  # by its other name


@pytest.mark.parametrize(
    ("kept", "error", "message"),
    [
        ({"2.weight": torch.ones(4, 15, dtype=torch.bool)}, ValueError, r"\(4, 16\).*\(4, 15\)"),
        ({"2.weight": torch.ones(16, 4, dtype=torch.bool)}, ValueError, r"\(4, 16\).*\(16, 4\)"),
        (
            {"2.weight": torch.ones(4, 16)},
            TypeError,
            "boolean tensor for 2.weight; got torch.float",
        ),
        ({"2.weight": [True]}, TypeError, "boolean tensor for 2.weight; got list"),
        ({"nope": torch.ones(4, 16, dtype=torch.bool)}, ValueError, "parameter; got 'nope'"),
        ([], TypeError, "names to masks; got list"),
    ],
)
def test_a_mask_that_does_not_fit(kept, error, message):
    """Catches a mask that is broadcast or cut to size, and one that fits applied before that."""
    model = mlp()
    if kept:
        kept = {"0.weight": torch.zeros(16, 8, dtype=torch.bool), **kept}
    before = model[0].weight.detach().clone()
    with pytest.raises(error, match=f"kept: .*{message}"):
        se.apply_masks(model, kept)
    assert torch.equal(model[0].weight, before)
    assert se.masks(model) == {}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: se.mask_zeros(mlp(), targets="nope"),
            ValueError,
            "targets: no prunable weight is left",
        ),
        (lambda: se.mask_zeros(mlp().to("meta")), ValueError, "0.weight is on the meta device"),
        (lambda: se.mask_zeros(3), TypeError, "model: expected a torch.nn.Module; got int"),
        (lambda: se.masks(3), TypeError, "model: expected a torch.nn.Module; got int"),
        (lambda: se.finalize(3), TypeError, "model: expected a torch.nn.Module; got int"),
        (lambda: se.apply_masks(3, {}), TypeError, "model: expected a torch.nn.Module; got int"),
        (
            lambda: se.apply_masks(nn.LazyLinear(2), {"weight": torch.ones(2, 2) > 0}),
            ValueError,
            "weight has no values yet",
        ),
    ],
)
def test_bad_arguments(call, error, message):
    """Catches an error from deep inside."""
    with pytest.raises(error, match=message):
        call()
