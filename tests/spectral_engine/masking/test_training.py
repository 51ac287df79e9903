"""Zeros stay zero through optimizers, gradients, scalers and moves."""

import copy
import warnings

import pytest
import torch
from torch import nn

import spectral_engine as se
from tests.support.masked_models import check, kept_by, loss_of, mlp, net, train, zeros

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, 0.01),
    "adam-fused": lambda p: torch.optim.Adam(p, 0.01, fused=True),
    "adam-foreach": lambda p: torch.optim.Adam(p, 0.01, foreach=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.1),
    "lbfgs": lambda p: torch.optim.LBFGS(p, 0.1, max_iter=3, line_search_fn="strong_wolfe"),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zeros_last_through_an_optimizer_that_was_there_before(name):
    """Catches momentum from before the pruning that brings entries back, and an optimizer whose
    steps are not seen."""
    model = net()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer)
    se.prune(model, sparsity=0.6, targets="*")
    kept = kept_by(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, optimizer)
    check(model, kept)
    assert all(not torch.equal(before[key], p) for key, p in model.named_parameters())


def test_zeros_are_lost_without_masks():
    """Catches a test of lasting zeros that would pass without any mask: momentum does revive."""
    model = net()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    train(model, optimizer)
    se.prune(model, sparsity=0.6, targets="*", masks=False)
    before = zeros(model)
    train(model, optimizer)
    for name, pruned in before.items():
        assert model.get_parameter(name)[pruned].any(), name


def test_an_optimizer_made_after_and_a_step_by_hand():
    """Catches a hook on known optimizers only, and gradients that are not masked."""
    model = mlp()
    se.prune(model, sparsity=0.5, targets="*")
    kept = kept_by(model)
    train(model, torch.optim.AdamW(model.parameters(), weight_decay=0.1))
    for step in range(3):
        model.zero_grad()
        loss_of(model, step).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(0.1 * parameter.grad)
    check(model, kept)


def test_gradients_are_masked_and_norms_clipped_right():
    """Catches a norm that counts the gradient of pruned entries, infinity there included, and
    gradients of other entries changed; accumulated ones too."""
    model, dense = mlp(), mlp()
    se.prune(model, sparsity=0.5, targets="*")
    dense.load_state_dict(model.state_dict())
    kept = kept_by(model)
    for step in range(2):  # accumulated
        loss_of(model, step).backward()
        loss_of(dense, step).backward()
    for name, parameter in dense.named_parameters():
        expected = parameter.grad * kept.get(name, True)
        assert torch.equal(model.get_parameter(name).grad, expected)
        parameter.grad = expected
    assert torch.equal(
        nn.utils.clip_grad_norm_(model.parameters(), 0.1),
        nn.utils.clip_grad_norm_(dense.parameters(), 0.1),
    )
    weight = model[0].weight
    coefficients = torch.where(kept["0.weight"], 1.0, torch.inf)
    (gradient,) = torch.autograd.grad((coefficients * weight).sum(), weight)
    assert torch.equal(gradient, kept["0.weight"].float())


def test_second_derivatives_go_through():
    """Catches a gradient that is cut from its graph, as a gradient penalty needs it."""
    model = mlp()
    se.prune(model, sparsity=0.5, targets="*")
    weight, kept = model[0].weight, se.masks(model)["0.weight"].unpack()
    (gradient,) = torch.autograd.grad((weight**3).sum(), weight, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), weight)
    assert torch.allclose(second, 6 * weight * kept)


def test_sparse_gradients_of_an_embedding():
    """Catches a hook that fails on, or densifies, a sparse gradient."""
    model = nn.Embedding(10, 4, sparse=True)
    se.prune(model, sparsity=0.5, targets="Embedding")
    kept = kept_by(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        model(torch.tensor([1, 1, 7])).sum().backward()
    assert model.weight.grad.is_sparse
    assert not model.weight.grad.to_dense()[~kept["weight"]].any()
    assert model.weight.grad.to_dense()[1][kept["weight"][1]].eq(4).all()
    optimizer.step()
    check(model, kept)


def test_a_frozen_weight_that_is_trained_later():
    """Catches a weight frozen while it is pruned that is never masked, or is no longer frozen."""
    model = mlp()
    model.requires_grad_(False)
    se.prune(model, sparsity=0.5, targets="*")
    assert not any(p.requires_grad for p in model.parameters())
    model.requires_grad_(True)
    kept = kept_by(model)
    loss_of(model).backward()
    assert not model[0].weight.grad[~kept["0.weight"]].any()
    train(model, torch.optim.Adam(model.parameters()))
    check(model, kept)


def test_autocast_scaler_and_accumulation():
    """Catches bf16 gradients, scaled losses and several backward passes a step that bring zeros
    back."""
    model = mlp()
    se.prune(model, sparsity=0.5, targets="*")
    kept = kept_by(model)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    for step in range(3):
        for part in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(model, 2 * step + part) / 2
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    check(model, kept)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_moved_to_another_dtype(dtype):
    """Catches a mask that stays behind when the weights are converted."""
    model = net()
    se.prune(model, sparsity=0.5, targets="*")
    kept = kept_by(model)
    model.to(dtype)
    train(model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))
    check(model, kept)
    assert model.embed.weight.dtype == dtype


@pytest.mark.gpu
def test_a_model_moved_to_a_gpu():
    """Catches a mask left on the CPU, a fused optimizer on CUDA, and a CUDA mask pruned there."""
    model = net()
    se.prune(model, sparsity=0.5, targets="*")
    kept = {name: entries.cuda() for name, entries in kept_by(model).items()}
    model.cuda()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.1, fused=True)
    for _ in range(3):
        tokens = torch.randint(20, (3, 5), device="cuda")
        with torch.autocast("cuda", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    check(model, kept)
    assert {mask.packed.device.type for mask in se.masks(model).values()} == {"cuda"}
    se.prune(model, sparsity=0.8, targets="*")
    assert all(mask.sparsity > 0.75 for mask in se.masks(model).values())
    model.cpu()
    assert {mask.unpack().device.type for mask in se.masks(model).values()} == {"cpu"}


def test_no_hook_before_the_first_mask():
    """Catches an import that installs a hook in every optimizer of the program."""
    import subprocess  # noqa: PLC0415
    import sys  # noqa: PLC0415

    probe = (
        "import torch, spectral_engine as se\n"
        "from torch.optim.optimizer import _global_optimizer_post_hooks as hooks\n"
        "before = len(hooks); model = torch.nn.Linear(3, 3)\n"
        "se.prune(model, sparsity=0.5); se.prune(model, sparsity=0.5)\n"
        "print(before, len(hooks))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "1"]


def test_other_models_are_not_touched():
    """Catches a global hook that changes, or warns about, a model without masks."""
    masked, plain = mlp(), mlp()
    se.prune(masked, sparsity=0.5, targets="*")
    expected = copy.deepcopy(plain)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(plain, torch.optim.SGD(plain.parameters(), 0.1))
        with torch.no_grad():
            for step in range(3):
                with torch.enable_grad():
                    expected.zero_grad()
                    loss_of(expected, step).backward()
                for parameter in expected.parameters():
                    parameter.sub_(0.1 * parameter.grad)
    for one, other in zip(plain.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(one, other)
