"""Sharded and replicated training on two processes: masks are kept, or the step is refused."""

import pytest
import torch

from tests.support.processes import on_processes

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="needs torch.distributed with gloo",
)

#: One process of two: prunes and trains in each of the ways that it is told, and prints a line of
#: what came of each.
PROGRAM = """
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.nn.parallel import DistributedDataParallel as DDP
import spectral_engine as se

def made():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(),
                         nn.Linear(128, 10))

def batches(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(32, 64, generator=generator) for _ in range(4)]

def train(model):
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.1)
    for step in range(3):
        torch.manual_seed(100 * rank + step)
        model(torch.randn(16, 64)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

def flat(model, orig):
    return FSDP(model, use_orig_params=orig, device_id=torch.device("cpu"))

def run(what, model):
    if what.startswith("pruned, FSDP"):
        se.prune(model, sparsity=0.8); train(flat(model, what.endswith("orig")))
    elif what.startswith("FSDP"):
        se.prune(flat(model, what.endswith("orig")), sparsity=0.8)
    elif what == "DDP, own batches":
        model = DDP(model); se.prune(model, "wanda", 0.8, calibration=batches(rank)); train(model)
    elif what == "own batches, DDP":
        se.prune(model, "wanda", 0.8, calibration=batches(rank)); train(DDP(model))
    elif what == "DDP, one process":
        model = DDP(model)
        if rank == 0:
            se.prune(model, sparsity=0.8)
        train(model)
    elif what == "DDP, same batches":
        wrapped = DDP(model)
        se.prune(wrapped, "wanda", 0.8, calibration=batches(0))
        zero = model[0].weight == 0
        train(wrapped)
        first = model[0].weight.detach().clone()
        dist.broadcast(first, 0)
        assert torch.equal(first, model[0].weight) and torch.equal(zero, first == 0)

for what in arguments:
    try:
        run(what, made())
        print("done", flush=True)
        dist.barrier()
    except ValueError as error:
        print("refused", error, flush=True)
    except RuntimeError:
        print("the other process is gone", flush=True)
leave()
"""


def two_processes(*ways: str) -> list[list[str]]:
    """The lines that each of two processes prints, one for each way."""
    return [output.splitlines() for output in on_processes(2, PROGRAM, *ways)]


SHARDED = {
    "pruned, FSDP orig": "model: 0.weight was masked with the shape (128, 64) and has",
    "pruned, FSDP flat": "model: 0.weight was replaced after it was masked",
    "FSDP orig": "model: 0.weight is held flat and in pieces by FullyShardedDataParallel",
    "FSDP flat": "model: 0.weight is held flat and in pieces by FullyShardedDataParallel",
}


def test_models_held_flat_are_refused_on_every_process():
    """Catches zeros trained away, or bits laid over another process's entries, without a word;
    whether the model was pruned before it was sharded or after."""
    for lines in two_processes(*SHARDED):
        for line, (way, message) in zip(lines, SHARDED.items(), strict=True):
            assert line.startswith(f"refused {message}"), (way, line)
            assert "finalize(model)" in line or "name it in ignore" in line


@pytest.mark.parametrize("way", ["DDP, own batches", "own batches, DDP", "DDP, one process"])
def test_processes_that_pruned_otherwise_are_refused(way):
    """Catches replicas that drift apart since each zeroes other entries after the common step."""
    lines = [line for lines in two_processes(way) for line in lines]
    refused = [line for line in lines if line.startswith("refused model: ")]
    assert refused, lines
    assert "done" not in lines, lines
    assert all("0.weight" in line for line in refused)


def test_processes_that_pruned_alike_stay_alike():
    """Catches a refusal where nothing is wrong, and replicas whose zeros or values differ."""
    assert two_processes("DDP, same batches") == [["done"]] * 2
