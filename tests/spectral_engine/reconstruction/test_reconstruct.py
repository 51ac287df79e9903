"""Pruned models fitted to the dense ones, block by block."""

import copy

import pytest
import torch
from torch import nn

import spectral_engine as se
from spectral_engine.reconstruction.units import units_of

WIDTH = 8


class Block(nn.Module):
    """A residual block, with an argument by keyword and one that it changes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)

    def forward(self, x, *, seen):
        seen.append(1)
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Model(nn.Module):
    """Three blocks, a head whose weight is also the first layer's, and a cache that fills."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH, bias=False)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(WIDTH, WIDTH, bias=False)
        self.head.weight = self.first.weight

    def forward(self, x, attention_mask=None):
        seen: list[int] = []
        x = self.first(x)
        for block in self.blocks:
            x = block(x, seen=seen)
        return self.head(x)


class Images(nn.Module):
    """Convolutions with batch normalisation, no blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


def batches(*shape, count=10):
    torch.manual_seed(1)
    return [torch.randn(*shape) for _ in range(count)]


def pruned(model, sparsity=0.6, recipe="magnitude", **options):
    torch.manual_seed(0)
    dense = model()
    sparse = copy.deepcopy(dense)
    if isinstance(dense, Model):
        options = {"ignore": ["first*", "head*"], **options}
    se.prune(sparse, recipe, sparsity, progress=False, **options)
    return sparse, dense


def error(sparse, dense, data):
    with torch.no_grad():
        gave, wanted = (torch.cat([one.eval()(x) for x in data]) for one in (sparse, dense))
    return float((gave - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(
    ("model", "shape"),
    [(Model, (4, 6, WIDTH)), (Images, (8, 3, 6, 6)), (lambda: nn.GRU(WIDTH, 8), (12, 32, WIDTH))],
)
def test_new_inputs_come_nearer_and_zeros_stay(model, shape):
    """Catches a fit to the wrong targets, one that trains a pruned entry back to life, and one
    that only learns the batches that it was shown."""
    sparse, dense = pruned(model)
    zero = {name: p == 0 for name, p in sparse.named_parameters() if p.ndim > 1}
    torch.manual_seed(2)
    held = [torch.randn(*shape) for _ in range(4)]

    def output(one, x):
        found = one(x)
        return found if isinstance(found, torch.Tensor) else found[0]

    with torch.no_grad():
        wanted = torch.cat([output(dense.eval(), x) for x in held])
        before = (torch.cat([output(sparse.eval(), x) for x in held]) - wanted).norm()
        report = se.reconstruct(
            sparse, dense, batches(*shape), steps=100, rate=0.05, progress=False
        )
        after = (torch.cat([output(sparse.eval(), x) for x in held]) - wanted).norm()
    assert after < 0.9 * before, report
    for name, p in sparse.named_parameters():
        if name in zero:
            assert bool((p[zero[name]] == 0).all()), name


def test_what_is_not_of_a_block_stays():
    """Catches a shared weight that is trained for one of its users, a dense model that is changed,
    flags of training or of gradients that do not come back, the whole thread's among them."""
    sparse, dense = pruned(Model)
    sparse.train()
    sparse.blocks[0].up.bias.requires_grad_(False)
    dense_before = copy.deepcopy(dense.state_dict())
    first = sparse.first.weight.clone()
    report = se.reconstruct(sparse, dense, batches(4, 6, WIDTH), steps=4, progress=False)
    assert [one.name for one in report.blocks] == ["blocks.0", "blocks.1", "blocks.2"]
    assert torch.equal(sparse.first.weight, first)
    assert all(torch.equal(x, dense_before[name]) for name, x in dense.state_dict().items())
    assert torch.is_grad_enabled()
    assert sparse.training
    assert sparse.blocks[1].training
    assert not sparse.blocks[0].up.bias.requires_grad
    assert all(p.grad is None for p in sparse.parameters())


def test_a_later_block_makes_up_for_the_earlier_ones():
    """Catches blocks fitted to inputs of the dense model, which do not know what was lost before
    them."""
    sparse, dense = pruned(Model, 0.8, targets=["blocks.0.*"])
    alone = copy.deepcopy(sparse)
    with torch.no_grad():  # one weight of the last block, so that it is fitted too
        alone.blocks[2].up.weight[0, 0] = 0.0
    data = batches(4, 6, WIDTH)
    se.reconstruct(sparse, dense, data, progress=False)
    se.reconstruct(alone, dense, data, progress=False)
    assert error(alone, dense, data) < error(sparse, dense, data)


def test_a_fit_that_is_no_better_is_not_taken():
    """Catches a fit taken over whatever came of it: a rate of 1 throws the weights about."""
    sparse, dense = pruned(Model)
    before = copy.deepcopy(sparse.state_dict())
    data = batches(4, 6, WIDTH)
    report = se.reconstruct(sparse, dense, data, rate=1.0, steps=12, progress=False)
    assert not all(one.kept for one in report.blocks)
    for one in report.blocks:
        if not one.kept and one.name:
            for name, x in sparse.get_submodule(one.name).state_dict().items():
                assert torch.equal(x, before[f"{one.name}.{name}"])


def test_hidden_positions_do_not_count():
    """Catches a fit to what padding gives."""
    sparse, dense = pruned(Model)
    torch.manual_seed(3)
    mask = torch.ones(4, 6)
    mask[:, 3:] = 0
    found = []
    for padding in (0.0, 100.0):
        data = []
        for x in batches(4, 6, WIDTH):
            y = x.clone()
            y[:, 3:] += padding
            data.append({"x": y, "attention_mask": mask})
        one = copy.deepcopy(sparse)
        se.reconstruct(one, dense, data, steps=4, progress=False)
        found.append(one.blocks[0].up.weight)
    assert torch.allclose(found[0], found[1], atol=1e-4)


def test_half_precision():
    """Catches steps that are rounded away: 1 % of a weight is less than bfloat16 tells apart."""
    sparse, dense = pruned(lambda: Model().bfloat16())
    data = [x.bfloat16() for x in batches(4, 6, WIDTH)]
    before = error(sparse, dense, data)
    se.reconstruct(sparse, dense, data, rate=0.003, steps=100, progress=False)
    assert error(sparse, dense, data) < 0.98 * before
    assert sparse.blocks[0].up.weight.dtype == torch.bfloat16


def test_prune_reconstructs_by_its_recipe():
    """Catches a recipe's field that nothing reads, one that is lost in a file, and masks that do
    not last through it."""
    recipe = se.Recipe(se.Magnitude(), reconstruction=se.Reconstruction(steps=32))
    assert se.Recipe.from_dict(recipe.to_dict()) == recipe
    data = batches(4, 6, WIDTH)
    sparse, dense = pruned(Model, 0.6, recipe, calibration=data)
    plain, _ = pruned(Model, 0.6)
    assert error(sparse, dense, data) < error(plain, dense, data)
    for name, mask in se.masks(sparse).items():
        assert mask.sparsity == pytest.approx(0.6, abs=0.02), name
    with pytest.raises(ValueError, match=r"calibration: .* needs calibration inputs"):
        se.prune(Model(), recipe)


def test_an_error_brings_everything_back():
    """Catches blocks that stay fitted where a later one failed."""
    torch.manual_seed(0)
    model = Model()
    before = copy.deepcopy(model.state_dict())
    seen = []

    def forward(one, batch):
        seen.append(1)
        if len(seen) > 45:
            raise RuntimeError("no more")
        one(batch)

    calibration = se.Calibration(batches(4, 6, WIDTH), forward=forward)
    recipe = se.Recipe(se.Magnitude(), reconstruction=se.Reconstruction(steps=4))
    with pytest.raises(ValueError, match="no more"):
        se.prune(model, recipe, 0.5, calibration=calibration, progress=False)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert se.masks(model) == {}


def test_gathered_moments_hold_no_batches():
    """Catches a reconstruction that is left out without a word."""
    torch.manual_seed(0)
    model = Model()
    gathered = se.calibrate(model, batches(4, 6, WIDTH))
    recipe = se.Recipe(se.Magnitude(), reconstruction=se.Reconstruction())
    report = se.prune(model, recipe, 0.5, calibration=gathered, progress=False)
    assert "not reconstructed" in str(report)


def test_norms_are_measured_again():
    """Catches a momentum that leaves part of the old statistics, and flags that do not return."""
    torch.manual_seed(0)
    model = Images().train()
    model.norm.running_mean += 5.0
    data = batches(8, 3, 6, 6)
    assert se.reestimate_norms(model, data) == 1
    with torch.no_grad():
        found = torch.cat([model.conv(x) for x in data])
    assert torch.allclose(model.norm.running_mean, found.mean((0, 2, 3)), atol=1e-5)
    assert model.training
    assert model.norm.momentum == 0.1


def test_units():
    """Catches blocks that are split, and a list of plain layers taken for blocks."""
    assert list(units_of(Model())) == ["first", "blocks.0", "blocks.1", "blocks.2", "head"]
    assert list(units_of(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))) == [""]
    layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    assert list(units_of(encoder)) == ["layers.0", "layers.1"]


@pytest.mark.parametrize(
    ("dense", "kind", "match"),
    [(lambda m: m, TypeError, "dense: expected the model before"),
     (lambda m: nn.Linear(2, 2), ValueError, "dense: .* got a Linear with none of them"),
     (lambda m: "dense", TypeError, "dense: .* got str")],
)  # fmt: skip
def test_another_model_is_refused(dense, kind, match):
    """Catches a model fitted to one that it does not come from."""
    model, _ = pruned(Model)
    with pytest.raises(kind, match=match):
        se.reconstruct(model, dense(model), batches(4, 6, WIDTH))


class Hard(torch.autograd.Function):
    """An operator without a gradient."""

    @staticmethod
    def forward(_, x):
        return x.clone()

    @staticmethod
    def backward(_, grad):
        raise RuntimeError("no gradient")


class Rounded(Block):
    """A block that cannot be trained."""

    def forward(self, x, *, seen):
        return Hard.apply(super().forward(x, seen=seen))


def test_a_block_without_a_gradient_is_left():
    """Catches a pruning that fails for a block that can run but not be trained."""
    sparse, dense = pruned(Model)
    for model in (sparse, dense):
        model.blocks[1].__class__ = Rounded
    report = se.reconstruct(sparse, dense, batches(4, 6, WIDTH), steps=4, progress=False)
    assert [one.name for one in report.blocks] == ["blocks.0", "blocks.2"]
    assert report.left == {"blocks.1": "it cannot be trained: no gradient"}


def test_a_batch_of_one_row_measures_no_norm():
    """Catches a normalisation that is measured over a single value, which torch refuses."""

    def network():
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))

    sparse, dense = pruned(network)
    report = se.reconstruct(sparse, dense, batches(1, 4), steps=4, progress=False)
    assert len(report.blocks) == 1
