"""What pruning made zero stays zero: through training, copies, files, compilers; and is let go."""

import copy
import gc
import io
import pickle
import warnings
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import spectral_engine as se
from spectral_engine.masking import mask as mask_module


class Net(nn.Module):
    """A convolution, a recurrent layer, attention, linear layers, an embedding tied to a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.conv = nn.Conv1d(8, 8, 3, padding=1, groups=2)
        self.gru = nn.GRU(8, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.body = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens)
        x = self.conv(x.mT).mT
        x, _ = self.gru(x)
        x = x + self.attention(x, x, x)[0]
        return self.head(self.body(x))


MASKED = {
    "embed.weight", "conv.weight", "gru.weight_ih_l0", "gru.weight_hh_l0",
    "attention.in_proj_weight", "attention.out_proj.weight", "body.0.weight", "body.2.weight",
}  # fmt: skip


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def mlp(width: int = 16) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4))


def loss_of(model: nn.Module, step: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    if isinstance(model, Net):
        tokens = torch.randint(20, (3, 5), generator=generator)
        return nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
    x = torch.randn(6, 8, generator=generator).to(next(model.parameters()))
    return (model(x) - 1.0).square().mean()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for step in range(steps):

        def closure(step=step):
            optimizer.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            return loss

        optimizer.step(closure)


def zeros(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: model.get_parameter(name) == 0 for name in MASKED}


def check(model: nn.Module, kept: dict[str, torch.Tensor]) -> None:
    """Every pruned entry is zero, and others have moved on."""
    assert kept
    for name, entries in kept.items():
        weight = model.get_parameter(name)
        assert not weight[~entries].any(), name
        assert weight[entries].any(), name


def kept_by(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: mask.unpack() for name, mask in se.masks(model).items()}


# The mask itself


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
    se.prune(model, sparsity=0.5, ignore="gru.weight_ih_l0[reset]")
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
    se.prune(model, masks=False)
    assert se.masks(model) == {}
    assert not any("_spectral_masks" in module.__dict__ for module in model.modules())


# Optimizers

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
    se.prune(model, sparsity=0.6)
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
    se.prune(model, sparsity=0.6, masks=False)
    before = zeros(model)
    train(model, optimizer)
    for name, pruned in before.items():
        assert model.get_parameter(name)[pruned].any(), name


def test_an_optimizer_made_after_and_a_step_by_hand():
    """Catches a hook on known optimizers only, and gradients that are not masked."""
    model = mlp()
    se.prune(model, sparsity=0.5)
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
    se.prune(model, sparsity=0.5)
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
    se.prune(model, sparsity=0.5)
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
    se.prune(model, sparsity=0.5)
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
    se.prune(model, sparsity=0.5)
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
    se.prune(model, sparsity=0.5)
    kept = kept_by(model)
    model.to(dtype)
    train(model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))
    check(model, kept)
    assert model.embed.weight.dtype == dtype


@pytest.mark.gpu
def test_a_model_moved_to_a_gpu():
    """Catches a mask left on the CPU, a fused optimizer on CUDA, and a CUDA mask pruned there."""
    model = net()
    se.prune(model, sparsity=0.5)
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
    se.prune(model, sparsity=0.8)
    assert all(mask.sparsity > 0.75 for mask in se.masks(model).values())
    model.cpu()
    assert {mask.unpack().device.type for mask in se.masks(model).values()} == {"cpu"}


# Copies and files


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
    se.prune(model, sparsity=0.5)
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
    se.prune(model, sparsity=0.5)
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
    se.prune(model, sparsity=0.5)
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


def test_masks_take_one_bit_an_entry():
    """Catches masks that grow a pickled model by more than 1/32 of its float32 size."""
    model = mlp(2048)
    plain = len(pickle.dumps(model))
    entries = sum(p.numel() for p in model.parameters())
    se.prune(model, sparsity=0.5)
    assert sum(mask.nbytes for mask in se.masks(model).values()) <= entries / 8
    assert len(pickle.dumps(model)) - plain <= 4 * entries / 32 + 2500


def test_mask_zeros_of_a_loaded_checkpoint():
    """Catches zeros of a checkpoint that are trained away, masks of weights without zeros, and an
    old mask that goes on beside the new one."""
    model, again = net(), net()
    se.prune(model, sparsity=0.5, ignore="body.*")
    again.load_state_dict(model.state_dict())
    found = se.mask_zeros(again)
    assert set(found) == MASKED - {"body.0.weight", "body.2.weight"}
    kept = kept_by(model)
    assert all(torch.equal(found[name].unpack(), kept[name]) for name in found)
    train(again, torch.optim.AdamW(again.parameters(), weight_decay=0.1))
    check(again, kept)
    se.prune(model, sparsity=0.8, targets="conv")
    again.load_state_dict(model.state_dict())
    se.mask_zeros(again, targets="conv")
    assert torch.equal(se.masks(again)["conv.weight"].unpack(), model.conv.weight != 0)
    assert mask_module._active[id(again.conv.weight)] is se.masks(again)["conv.weight"]
    again.conv.weight.data.fill_(1.0)
    assert set(se.mask_zeros(again)) == MASKED - {"body.0.weight", "body.2.weight", "conv.weight"}


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


def test_loading_keeps_the_masks():
    """Catches dense values loaded over zeros, as by rewinding to early weights, and an
    `assign=True` that swaps the parameters under the masks."""
    model, early = net(), net()
    se.prune(model, sparsity=0.5)
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


# Pruning again


@pytest.mark.parametrize("method", ["magnitude", "randomized", "principal"])
def test_a_second_pruning_shrinks_the_mask(method):
    """Catches entries that come back in the next round, and rounds that add up to another
    sparsity than the one asked for."""
    model = mlp(64)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    before = None
    for seed, sparsity in enumerate((0.5, 0.8)):
        report = se.prune(model, method, sparsity, seed=seed)
        kept = kept_by(model)
        for row in report.layers:
            assert row.nnz == int((model.get_parameter(row.name) != 0).sum())
            assert before is None or not (kept[row.name] & ~before[row.name]).any()
            assert len(model.get_parameter(row.name)._backward_hooks) == 1
        train(model, optimizer)
        check(model, kept)
        before = kept
    assert report.sparsity >= (0.75 if method == "randomized" else 0.799)
    assert method != "magnitude" or report.sparsity < 0.801


def test_a_weaker_pruning_brings_nothing_back():
    """Catches a mask that grows when less sparsity is asked for, and its report."""
    model = mlp()
    se.prune(model, sparsity=0.8)
    kept = kept_by(model)
    report = se.prune(model, sparsity=0.2)
    assert all(torch.equal(kept_by(model)[name], entries) for name, entries in kept.items())
    assert report.nnz == sum(int(entries.sum()) for entries in kept.values())
    se.prune(model, sparsity=0.9, masks=False)  # not lasting, and under the masks there are
    assert all(torch.equal(kept_by(model)[name], entries) for name, entries in kept.items())


def test_a_refit_brings_nothing_back():
    """Catches zeros of an earlier pruning that a refit with a mask of its own fills in, and a
    report that counts them."""
    model = mlp()
    se.prune(model, sparsity=0.5)
    kept = kept_by(model)
    report = se.prune(model, sparsity=0.2, refit="sparsegpt", calibration=[torch.randn(64, 8)])
    check(model, kept)
    for row in report.layers:
        assert row.nnz == int((model.get_parameter(row.name) != 0).sum())
        assert row.sparsity == pytest.approx(1 - row.nnz / row.size)
    assert all(not (kept_by(model)[name] & ~entries).any() for name, entries in kept.items())


def test_masks_of_the_layers_done_when_a_run_is_stopped():
    """Catches pruned weights left without masks where a progress callback raises."""
    model = mlp()

    def stop(row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        se.prune(model, sparsity=0.5, progress=stop)
    assert set(se.masks(model)) == {"0.weight"}
    assert model[2].weight.all()


def test_parameters_of_one_memory_are_masked_together():
    """Catches an optimizer that revives zeros through another parameter of the same memory."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight.data = model[0].weight.data
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(3, 8)).sum().backward()
    optimizer.step()
    se.prune(model, sparsity=0.5)
    found = se.masks(model)
    assert set(found) == {"0.weight", "1.weight"}
    assert found["0.weight"].packed.data_ptr() == found["1.weight"].packed.data_ptr()
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(3, 8)).sum().backward()
        optimizer.step()
    check(model, kept_by(model))


# Masks from elsewhere


def test_masks_of_another_model():
    """Catches a winning ticket that cannot be carried to a fresh model, and masks that replace
    those of an earlier pruning."""
    model, fresh = net(), net()
    se.prune(model, sparsity=0.5)
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


def test_mask_zeros_refuses_a_weight_that_is_all_zeros():
    """Catches a layer initialised with zeros, as adapters have, frozen for ever by its own mask."""
    model = mlp()
    model[0].weight.data[0] = 0
    nn.init.zeros_(model[2].weight)
    with pytest.raises(ValueError, match=r"model: 2\.weight is all zeros"):
        se.mask_zeros(model)
    assert se.masks(model) == {}
    assert set(se.mask_zeros(model, ignore="2")) == {"0.weight"}


# Compilers


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, on import
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_forward_and_backward(backend):
    """Catches a graph break or a gradient that is not masked under torch.compile, for a model
    pruned before and pruned again after it was compiled."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    train(model, optimizer)
    se.prune(model, sparsity=0.5)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for sparsity in (None, 0.8):
        if sparsity is not None:
            se.prune(compiled, sparsity=sparsity)
        kept = kept_by(model)
        x = torch.randn(6, 8)
        assert torch.allclose(compiled(x), model(x), atol=1e-6)
        model.zero_grad()
        compiled(x).square().sum().backward()
        assert not model[0].weight.grad[~kept["0.weight"]].any()
        assert model[0].weight.grad.any()
        train(compiled, optimizer)
        check(model, kept)
    assert set(se.masks(compiled)) == {"_orig_mod.0.weight", "_orig_mod.2.weight"}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, on import
def test_compiled_optimizer_step():
    """Catches an optimizer step that is compiled without its hooks."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    train(model, optimizer)
    se.prune(model, sparsity=0.5)
    kept = kept_by(model)
    step = torch.compile(optimizer.step, backend="eager")
    for index in range(2):
        optimizer.zero_grad()
        loss_of(model, index).backward()
        step()
    check(model, kept)


def test_exported_program():
    """Catches a masked model that torch.export refuses, and a mask that gets into the program."""
    model = mlp().eval()
    se.prune(model, sparsity=0.5)
    x = torch.randn(6, 8)
    for strict in (False, True):
        program = torch.export.export(model, (x,), strict=strict)
        assert torch.equal(program.module()(x), model(x))
        assert set(program.state_dict) == set(model.state_dict())
        assert not program.constants


# Letting go


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
    se.prune(masked, sparsity=0.5)
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


def test_mask_zeros_of_a_split_weight():
    """Catches parts that `prune` can name and `mask_zeros` cannot."""
    model, split = mlp(), {"0": ("upper", "lower")}
    se.prune(model, sparsity=0.75, targets="0.weight[[]lower]", split=split, masks=False)
    se.mask_zeros(model, targets="0.weight[[]lower]", split=split)
    zero = model[0].weight == 0
    assert torch.equal(~se.masks(model)["0.weight"].unpack(), zero)
    assert zero.any()
