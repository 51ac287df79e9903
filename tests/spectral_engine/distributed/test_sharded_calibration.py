"""Calibrated pruning of sharded models: FSDP2 has the bytes of the whole model."""

import json

import pytest
import torch

from tests.support.processes import on_processes

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="needs torch.distributed with gloo",
)

PROGRAM = """
import json
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
import spectral_engine as se

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(9), nn.Linear(9, 14), nn.Linear(14, 9)
    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))

def made():
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block(), nn.Linear(9, 5))  # 5 rows: uneven on two

def fsdp(model):
    for block in model:
        fully_shard(block)
    return fully_shard(model)

def tensor_parallel(model):
    mesh = init_device_mesh("cpu", (world,))
    for block in list(model)[:2]:
        parallelize_module(block, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    return model

def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 9, generator=generator) * 2.0 ** i for i in range(3)]

RECIPES = {
    "wanda": ("wanda", {}), "sparsegpt": ("sparsegpt", {}), "alps": ("alps", {}),
    "bias": (se.Recipe(refit=se.LeastSquares(bias_correction=True)), {}),
    "sequential": ("sparsegpt", {"sequential": True}),
    "sampled": ("wanda", {"max_samples": 20}),
}

def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor

found = {}
for way in (fsdp, tensor_parallel):
    for name, (recipe, options) in RECIPES.items():
        model, reference = way(made()), made()
        reports = [se.prune(one, recipe, 0.5, calibration=se.Calibration(batches(), **options))
                   for one in (model, reference)]
        a, b = ({key: whole(value) for key, value in one.state_dict().items()}
                for one in (model, reference))
        masks, others = se.masks(model), se.masks(reference)
        found[f"{way.__name__} {name}"] = {
            "bytes": all(torch.equal(a[key], b[key]) for key in b),
            "near": max(float((a[key] - b[key]).abs().max() / b[key].abs().max()) for key in b),
            "masks": all(torch.equal(whole(masks[k].unpack()), others[k].unpack()) for k in others),
            "rows": len({json.dumps([[r.name, r.nnz, r.samples, r.uncalibrated]
                                     for r in report.layers]) for report in reports}) == 1,
        }
print(json.dumps(found)); leave()
"""


@pytest.fixture(scope="module")
def outcomes():
    """What each of two processes found."""
    outputs = on_processes(2, PROGRAM)
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def test_fully_sharded_models_have_the_bytes_of_whole_ones(outcomes):
    """Catches moments of a process's part, gathered weights that are left in place between passes,
    a bias whose correction is spread wrongly, and masks of another part than the process holds."""
    assert outcomes[0] == outcomes[1]
    for name, one in outcomes[0].items():
        if name.startswith("fsdp"):
            assert one == {"bytes": True, "near": 0.0, "masks": True, "rows": True}, name


def test_tensor_parallel_models_differ_in_last_bits(outcomes):
    """Catches moments of the part of the inputs that a process sees; sums of two parts round
    otherwise than whole ones."""
    for name, one in outcomes[0].items():
        if name.startswith("tensor_parallel"):
            assert one["masks"], name
            assert one["rows"], name
            assert one["near"] < 1e-3, name
