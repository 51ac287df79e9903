"""What no hook can keep is refused by name before the next optimizer step."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

import spectral_engine as se
from tests.support.masked_models import check, kept_by, loss_of, mlp, net, train


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.1)


def merge(model: nn.Module) -> torch.Tensor:
    """Add an adapter's product to a weight, as `merge_and_unload` does; the merged weight."""
    model[0].weight.data += 0.1 * torch.randn(16, 1) @ torch.randn(1, 8)
    return model[0].weight.detach().clone()


@pytest.mark.parametrize("steps_before", [0, 2])
def test_an_adapter_merged_into_a_pruned_weight_is_noticed(steps_before):
    """Catches masks that claim zeros which are gone, and a step that zeroes half of what was
    merged; on the first step after the pruning and on a later one."""
    model = mlp()
    se.prune(model, sparsity=0.5)
    optimizer = adamw(model)
    train(model, optimizer, steps_before)
    merged = merge(model)
    message = r"model: 64 pruned entries of 0\.weight hold values"
    for call in (
        lambda: se.masks(model),
        lambda: se.prune(model, sparsity=0.9),
        lambda: train(model, optimizer, 1),
    ):
        with pytest.raises(ValueError, match=message):
            call()
        assert torch.equal(model[0].weight, merged)


def test_the_ways_out_after_a_merge_are_open():
    """Catches an error that names a way out which fails, or which does something else."""
    model = mlp()
    se.prune(model, sparsity=0.5)
    kept, merged = kept_by(model), merge(model)
    applied, zeros_left, finalized = (copy.deepcopy(model) for _ in range(3))

    se.apply_masks(applied, {})
    assert torch.equal(applied[0].weight, merged * kept["0.weight"])
    train(applied, adamw(applied))
    check(applied, kept)

    assert set(se.mask_zeros(zeros_left)) == {"2.weight"}
    assert torch.equal(zeros_left[0].weight, merged)

    with pytest.warns(UserWarning, match=r"hold values and stay as they are: 0\.weight \(64\)"):
        se.finalize(finalized)
    assert torch.equal(finalized[0].weight, merged)
    assert se.masks(finalized) == {}
    train(finalized, adamw(finalized))


def test_a_mask_that_gives_way_zeroes_nothing():
    """Catches a dense weight that becomes sparse again when its mask is taken off."""
    model = mlp()
    se.prune(model, sparsity=0.5)
    model[0].weight.data.fill_(1.0)
    assert set(se.mask_zeros(model)) == {"2.weight"}
    assert model[0].weight.all()


def replaced(model: nn.Sequential) -> None:
    model[0].weight = nn.Parameter(torch.ones_like(model[0].weight))


def another_shape(model: nn.Sequential) -> None:
    weight = model[0].weight
    weight.data = weight.data.flatten()[:100]
    model[0].forward = lambda x: x.new_ones(len(x), 16) * weight.sum()


def converted(model: nn.Sequential) -> None:
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        model.to(torch.float64)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replaced, "was replaced after it was masked.*mask_zeros"),
        (nn.utils.parametrizations.weight_norm, "was replaced after it was masked.*finalize"),
        (another_shape, r"was masked with the shape \(16, 8\) and has \(100,\) now"),
        (converted, "was replaced after it was masked"),
    ],
)
@pytest.mark.parametrize("how", ["itself", "deepcopy", "pickle"])
def test_a_lost_mask_is_refused_at_the_next_step(change, message, how):
    """Catches zeros that are trained away without a word where the parameter was replaced, or bits
    laid over other entries where it has another shape; in copies too."""
    model = mlp()
    se.prune(model, sparsity=0.5)
    original = model
    if how == "deepcopy":
        model = copy.deepcopy(model)
    elif how == "pickle":
        model = pickle.loads(pickle.dumps(model))
    change(model[0] if change is nn.utils.parametrizations.weight_norm else model)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(ValueError, match=rf"model: 0\.weight {message}"):
        train(model, torch.optim.SGD(model.parameters(), 0.1), 1)
    assert all(map(torch.equal, model.parameters(), before))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `converted` leaves zeros, `replaced` none
        se.finalize(model)
    train(model, torch.optim.SGD(model.parameters(), 0.1), 1)
    if original is not model:
        train(original, adamw(original), 1)


def test_an_advice_is_one_that_works():
    """Catches mask_zeros named as the way out where only finalize is one, and masks that it makes
    before it fails."""
    model = mlp()
    se.prune(model, sparsity=0.5)
    nn.utils.parametrizations.weight_norm(model[0])
    mask = model[2]._spectral_masks["weight"]
    for call in (se.masks, se.mask_zeros, lambda model: se.prune(model, sparsity=0.7)):
        with pytest.raises(ValueError, match=r"0\.weight was replaced") as refused:
            call(model)
        assert "mask_zeros" not in str(refused.value)
        assert "finalize(model)" in str(refused.value)
    assert model[2]._spectral_masks["weight"] is mask
    se.finalize(model)
    assert [row.name for row in se.prune(model, sparsity=0.7).layers] == ["2.weight"]


def test_a_step_on_another_model_is_not_refused():
    """Catches a broken model that stops the training of one that is whole."""
    model, other = mlp(), net()
    se.prune(model, sparsity=0.5)
    se.prune(other, sparsity=0.5)
    kept = kept_by(other)
    replaced(model)
    train(other, adamw(other))
    check(other, kept)


def test_a_gradient_from_before_the_pruning_is_masked_with_it():
    """Catches the norm of a gradient that counts what was pruned after the backward pass."""
    model = mlp()
    loss_of(model).backward()
    expected = model[0].weight.grad.clone()
    se.prune(model, sparsity=0.5)
    kept = se.masks(model)["0.weight"].unpack()
    assert torch.equal(model[0].weight.grad, expected * kept)
    embedding = nn.Embedding(10, 4, sparse=True)
    embedding(torch.tensor([1, 7])).sum().backward()
    se.prune(embedding, sparsity=0.5, targets="Embedding")
    dropped = ~se.masks(embedding)["weight"].unpack()
    assert not embedding.weight.grad.to_dense()[dropped].any()


@pytest.mark.parametrize("shape", [(40, 50), (3, 4, 5, 2)])
def test_samples_are_of_pruned_entries_alone(shape):
    """Catches a look at kept entries, which would refuse every step, and none at a weight of which
    few entries are pruned."""
    parameter = nn.Parameter(torch.ones(shape))
    for pruned in (1, parameter.numel() // 2, parameter.numel()):
        kept = torch.ones(parameter.numel(), dtype=torch.bool)
        kept[torch.randperm(len(kept), generator=torch.Generator().manual_seed(1))[:pruned]] = False
        module = nn.Module()
        module.weight = parameter
        se.apply_masks(module, {"weight": kept.view(shape)})
        mask = se.masks(module)["weight"]
        for _ in range(2):  # all, then a sample
            [sample] = mask.samples()
            assert len(sample) > 0
            assert not sample.any()
        parameter.data.fill_(1.0)
        [sample] = mask.samples()
        assert sample.all()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            se.finalize(module)
