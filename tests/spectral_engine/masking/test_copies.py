"""Copies and checkpoints of masked models; loading; masks made from a model's zeros."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import spectral_engine as se
from spectral_engine.masking import mask as mask_module
from tests.support.masked_models import MASKED, check, kept_by, loss_of, mlp, net, train


def copied(model: nn.Module, how: str) -> nn.Module:
    if how == "deepcopy":
        return copy.deepcopy(model)
    if how == "pickle":
        return pickle.loads(pickle.dumps(model))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_masked_on_their_own(how):
    """Catches a copy that loses its masks, shares them with the original, or has the original's
    parameters in them."""
    model = net()
    se.prune(model, sparsity=0.5, targets="*")
    kept = kept_by(model)
    again = copied(model, how)
    assert {id(p) for p in again.parameters()}.isdisjoint(map(id, model.parameters()))
    assert kept_by(again).keys() == kept.keys()
    se.finalize(model)
    optimizer = torch.optim.AdamW(again.parameters(), 0.01, weight_decay=0.1)
    for state in optimizer.param_groups[0]["params"]:
        optimizer.state[state] = {
            "step": torch.tensor(3.0),
            "exp_avg": torch.ones_like(state),
            "exp_avg_sq": torch.ones_like(state),
        }
    train(again, optimizer)
    check(again, kept)
    assert again.head.weight is again.embed.weight
    loss_of(again).backward()
    assert not again.embed.weight.grad[~kept["embed.weight"]].any()


def test_weight_average_of_a_masked_model():
    """Catches an average that fails to copy a masked model, or is dense."""
    model = net()
    se.prune(model, sparsity=0.5, targets="*")
    kept = kept_by(model)
    average = torch.optim.swa_utils.AveragedModel(model)
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(2):
        train(model, optimizer, 1)
        average.update_parameters(model)
    check(average.module, kept)


def test_checkpoints_do_not_grow_and_load_into_a_dense_model():
    """Catches masks in the state, other names than the dense model's, and a file that the plain
    model refuses."""
    model, dense = net(), net()
    se.prune(model, sparsity=0.5, targets="*")
    buffers = [io.BytesIO(), io.BytesIO()]
    for one, buffer in zip((model, dense), buffers, strict=True):
        torch.save(one.state_dict(), buffer)
    assert len(buffers[0].getvalue()) == len(buffers[1].getvalue())
    buffers[0].seek(0)
    state = torch.load(buffers[0], weights_only=True)
    assert dense.load_state_dict(state, strict=True) == ([], [])
    assert se.masks(dense) == {}
    tokens = torch.arange(5)[None]
    assert torch.equal(dense(tokens), model(tokens))


def test_loading_keeps_the_masks():
    """Catches dense values loaded over zeros, as by rewinding to early weights, and an
    `assign=True` that swaps the parameters under the masks."""
    model, early = net(), net()
    se.prune(model, sparsity=0.5, targets="*")
    kept = kept_by(model)
    model.load_state_dict(early.state_dict())
    check(model, kept)
    assert torch.equal(model.body[0].weight, early.body[0].weight * kept["body.0.weight"])
    state = {name: value.clone() for name, value in early.state_dict().items()}
    model.load_state_dict(state, assign=True)
    assert model.body[0].weight.data_ptr() == state["body.0.weight"].data_ptr()
    model.head.weight = model.embed.weight  # `assign` unties
    check(model, kept_by(model))
    assert all(torch.equal(kept_by(model)[name], entries) for name, entries in kept.items())
    train(model, torch.optim.Adam(model.parameters()))
    check(model, kept)


def test_mask_zeros_of_a_loaded_checkpoint():
    """Catches zeros of a checkpoint that are trained away, masks of weights without zeros, and an
    old mask that goes on beside the new one."""
    model, again = net(), net()
    se.prune(model, sparsity=0.5, targets="*", ignore="body.*")
    again.load_state_dict(model.state_dict())
    found = se.mask_zeros(again, targets="*")
    assert set(found) == MASKED - {"body.0.weight", "body.2.weight"}
    kept = kept_by(model)
    assert all(torch.equal(found[name].unpack(), kept[name]) for name in found)
    train(again, torch.optim.AdamW(again.parameters(), weight_decay=0.1))
    check(again, kept)
    se.prune(model, sparsity=0.8, targets="conv")
    again.load_state_dict(model.state_dict())
    se.mask_zeros(again, targets="conv")
    assert torch.equal(se.masks(again)["conv.weight"].unpack(), model.conv.weight != 0)
    assert mask_module.active[id(again.conv.weight)] is se.masks(again)["conv.weight"]
    again.conv.weight.data.fill_(1.0)
    assert set(se.mask_zeros(again, targets="*")) == MASKED - {
        "body.0.weight",
        "body.2.weight",
        "conv.weight",
    }


def test_mask_zeros_of_one_part_keeps_the_others():
    """Catches the mask of a gate that is lost when another gate of the same weight gets one."""
    model = nn.GRU(4, 4)
    se.prune(model, sparsity=0.5, targets="weight_ih_l0[reset]")
    reset = se.masks(model)["weight_ih_l0"].unpack()[:4]
    model.weight_ih_l0.data[5] = 0
    se.mask_zeros(model, targets="weight_ih_l0[update]")
    kept = se.masks(model)["weight_ih_l0"].unpack()
    assert torch.equal(kept[:4], reset)
    assert kept[4:].sum(1).tolist() == [4, 0, 4, 4, 4, 4, 4, 4]


def test_mask_zeros_of_a_split_weight():
    """Catches parts that `prune` can name and `mask_zeros` cannot."""
    model, split = mlp(), {"0": ("upper", "lower")}
    lower = se.Recipe(select=se.Select("0.weight[[]lower]", split=split))
    se.prune(model, lower, 0.75, masks=False)
    se.mask_zeros(model, targets="0.weight[[]lower]", split=split)
    zero = model[0].weight == 0
    assert torch.equal(~se.masks(model)["0.weight"].unpack(), zero)
    assert zero.any()


def test_mask_zeros_refuses_a_weight_that_is_all_zeros():
    """Catches a layer initialised with zeros, as adapters have, frozen for ever by its own mask."""
    model = mlp()
    model[0].weight.data[0] = 0
    nn.init.zeros_(model[2].weight)
    with pytest.raises(ValueError, match=r"model: 2\.weight is all zeros"):
        se.mask_zeros(model)
    assert se.masks(model) == {}
    assert set(se.mask_zeros(model, ignore="2")) == {"0.weight"}
