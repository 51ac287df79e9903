"""Models sharded over processes: the same bytes as whole ones, in every way of sharding."""

import json

import pytest
import torch

from tests.support.processes import on_processes

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="needs torch.distributed with gloo",
)

WAYS = ("fsdp", "columns", "tensor parallel", "plain")
RECIPES = ("magnitude", "randomized", "principal", "aligned", "spectral", "global", "rows")

PROGRAM = """
import json
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
import spectral_engine as se

mesh = init_device_mesh("cpu", (world,))

class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Parameter(torch.randn(3, 5, 7))

class Model(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.up = nn.Linear(9, hidden)  # 13 rows, 9 columns: uneven on two and on four
        self.conv = nn.Conv1d(4, 6, 3, groups=2)
        self.one = nn.Linear(3, 1)  # a row: some process has none of it
        self.gru = nn.GRU(5, 4)
        self.attention = nn.MultiheadAttention(6, 2)
        self.experts = Experts()
        self.down = nn.Linear(hidden, 9, bias=False)
    def forward(self, x):
        return self.down(torch.relu(self.up(x)))

def made(hidden=13):
    torch.manual_seed(0)
    return Model(hidden)

def fsdp(model):
    fully_shard(model.up); fully_shard(model)
    return model

def columns(model):
    fully_shard(model, shard_placement_fn=lambda p: (
        Shard(p.ndim - 1) if p.shape[-1] % world == 0 else None))
    return model

def tensor_parallel(model):
    return parallelize_module(model, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})

def plain(model):
    def place(name, module, mesh):
        for key, value in list(module._parameters.items()):
            if value is not None:
                module._parameters[key] = nn.Parameter(
                    distribute_tensor(value.detach(), mesh, [Shard(value.ndim - 1)]))
    return distribute_module(model, mesh, place)

def both(model):
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    parallelize_module(model, mesh["tensor"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    fully_shard(model, mesh=mesh["data"])
    return model

WAYS = {"fsdp": fsdp, "columns": columns, "tensor parallel": tensor_parallel, "plain": plain}
RECIPES = {
    "magnitude": "magnitude", "randomized": "randomized", "principal": "principal",
    "aligned": "aligned", "spectral": "spectral",
    "global": se.Recipe(se.Magnitude(), budget=se.Global(0.5)),
    "rows": se.Recipe(se.Randomized(law="l2"), budget=se.Uniform(0.5, group="row")),
}

def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor

def same(model, other):
    a, b = model.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(whole(a[k]), whole(b[k])) for k in a)

def row(one):
    return [one.name, list(one.shape), one.nnz, one.requested, one.rank, one.shared_with]

def train(model, steps):
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.1)
    for step in range(steps):
        torch.manual_seed(step)
        model(torch.randn(4, 9)).square().mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return optimizer
"""

EQUAL = """
equal = {}
for way in WAYS if world == 2 else ["both"]:
    for name, recipe in RECIPES.items():
        share = 0.5 if isinstance(recipe, str) else None
        model, reference = (WAYS[way] if world == 2 else both)(made()), made()
        expected = se.prune(reference, recipe, share, seed=3)
        report = se.prune(model, recipe, share, seed=3)
        masks, others = se.masks(model), se.masks(reference)
        equal[f"{way}, {name}"] = [
            same(model, reference),
            list(map(row, report.layers)) == list(map(row, expected.layers)),
            list(masks) == list(others)
            and all(torch.equal(whole(masks[k].unpack()), others[k].unpack()) for k in others),
            [m.sparsity for m in masks.values()] == [m.sparsity for m in others.values()],
        ]
"""

#: After EQUAL: training, checkpoints, spectra, schedules.
TRAINED = """
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

def zeros(model):
    return {k: whole(p.detach()) == 0 for k, p in model.named_parameters() if p.ndim > 1}

def holds(before, model):
    now = zeros(model)
    return all(bool(now[k][before[k]].all()) for k in before)

found = {}
for way in ("fsdp", "tensor parallel"):
    model = WAYS[way](made(12))
    train(model, 2)  # momentum of what is pruned then
    se.prune(model, "magnitude", 0.8)
    before = zeros(model)
    train(model, 20)
    path = os.path.join(arguments[0], way.replace(" ", ""))
    dcp.save({"model": get_model_state_dict(model)}, checkpoint_id=path)
    other = WAYS[way](made(12))
    state = {"model": get_model_state_dict(other)}
    dcp.load(state, checkpoint_id=path)
    set_model_state_dict(other, state["model"])
    found[f"{way}: saved and loaded"] = same(model, other)
    se.mask_zeros(other)
    train(other, 3)
    set_model_state_dict(model, get_model_state_dict(WAYS[way](made(12))))  # a dense one
    found[f"{way}: kept"] = [len(se.masks(m)) == 9 and holds(before, m) for m in (model, other)]

model = made()
se.prune(model, "magnitude", 0.8)
fsdp(model)
try:
    train(model, 1)
except ValueError as error:
    found["pruned, then sharded"] = str(error)
se.mask_zeros(model)
before = zeros(model)
train(model, 3)
found["pruned, sharded, masked"] = holds(before, model)

model, reference = fsdp(made()), made()
model(torch.randn(2, 9))  # leaves gathered copies in the place of its parameters
se.prune(model, "randomized", 0.5)
model(torch.randn(2, 9))
found["after a forward"] = len(se.masks(model)) == 9
se.prune(reference, "randomized", 0.5)
found["after a forward"] &= same(model, reference)

def rows(spectra):
    return [[one.name, list(one.shape), one.singular_values, one.statistics] for one in spectra]

found["spectra"] = rows(se.spectra(model, rank=3)) == rows(se.spectra(reference, rank=3))
dense = [fsdp(made()), made()]
found["compare"] = len({str(se.compare(*pair, progress=False))
                        for pair in zip(dense, [model, reference])}) == 1
pruners = [
    se.Pruner(one, se.Iterative(0.9, rounds=2, every=1), "randomized", rewind=0, leading=2,
              collapse=0.0)
    for one in dense]
for pruner in pruners:
    for _ in range(3):
        pruner.step()
    pruner.finish()
found["pruner"] = same(*dense) and pruners[0].to_dict() == pruners[1].to_dict()
"""

END = "print(json.dumps([equal, found])); leave()"


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What two processes found, each."""
    folder = str(tmp_path_factory.mktemp("checkpoints"))
    outputs = on_processes(2, PROGRAM + EQUAL + TRAINED + END, folder)
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def test_every_way_of_sharding_gives_the_bytes_of_the_whole_model(outcomes):
    """Catches draws, budgets or masks of a shard that are not those of the whole: offsets left
    out, rows of an uneven shard shifted, a report of a part."""
    for equal, _ in outcomes:
        assert len(equal) == len(WAYS) * len(RECIPES)
        assert {key: value for key, value in equal.items() if value != [True] * 4} == {}


def test_two_dimensions_of_sharding_give_the_bytes_of_the_whole_model():
    """Catches parts put together in the order of one dimension of the mesh alone, and results that
    hang on the number of processes."""
    for output in on_processes(4, PROGRAM + EQUAL + "found = None\n" + END):
        equal, _ = json.loads(output.splitlines()[-1])
        assert {key: value for key, value in equal.items() if value != [True] * 4} == {}
        assert len(equal) == len(RECIPES)


@pytest.mark.parametrize("way", ["fsdp", "tensor parallel"])
def test_masks_last_through_steps_and_checkpoints(outcomes, way):
    """Catches zeros revived by weight decay, by momentum or by gradients that no hook sees; a
    checkpoint that is not the model; and a dense state dict laid over the masks."""
    for _, found in outcomes:
        assert found[f"{way}: saved and loaded"]
        assert found[f"{way}: kept"] == [True, True]


def test_a_model_that_was_pruned_and_then_sharded_says_how_to_go_on(outcomes):
    """Catches zeros trained away without a word, and a way out that is none."""
    for _, found in outcomes:
        assert found["pruned, then sharded"].startswith("model: up.weight was replaced after it")
        assert "mask_zeros(model)" in found["pruned, then sharded"]
        assert found["pruned, sharded, masked"]


def test_gathered_copies_are_not_taken_for_the_parameters(outcomes):
    """Catches a pruning of what FSDP2 throws away with the next pass."""
    assert all(found["after a forward"] for _, found in outcomes)


@pytest.mark.parametrize("what", ["spectra", "compare", "pruner"])
def test_spectra_and_schedules_are_those_of_the_whole_model(outcomes, what):
    """Catches the spectrum of a shard in place of the weight's, and rewinding to the wrong part."""
    assert all(found[what] for _, found in outcomes)
