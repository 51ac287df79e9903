"""What a loaded compressed model holds, counted byte by byte, beside its file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from spectral_kernels.product.cpu import operator as cpu
from torch import nn

import spectral_engine as se
from tests.support.sparse_weights import pruned

DTYPES = [torch.bfloat16, torch.float32, torch.float64]
SPARSITIES = [0.5, 0.7, 0.9, 0.95, 0.97, 0.99, 0.995]


def memories(value: Any, found: dict[int, int]) -> None:
    """Add address and bytes of every array that a value holds, of the memory that owns it."""
    if isinstance(value, torch.Tensor):
        storage = value.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
    elif isinstance(value, np.ndarray):
        while isinstance(value.base, np.ndarray):
            value = value.base
        address = value.__array_interface__["data"][0]
        found[address] = max(found.get(address, 0), value.nbytes)
    elif isinstance(value, (tuple, list)):
        for one in value:
            memories(one, found)
    elif isinstance(value, dict):
        memories(list(value.values()), found)


def held_by(model: nn.Module, dtype: torch.dtype) -> int:
    """The bytes of parameters, buffers, and all that products have made of them.

    Tables that all layers of a process share, 8 KiB, and the room of a call are left out.
    """
    found: dict[int, int] = {}
    shared: dict[int, int] = {}
    name = str(dtype).removeprefix("torch.")
    tables = [cpu.lanes_table(name, way) for way in cpu.ways(name)]
    memories([*tables, cpu._places(True), cpu._places(False)], shared)
    for module in model.modules():
        memories([*module._parameters.values(), *module._buffers.values()], found)
        prepared = getattr(module, "prepared", None)
        if prepared is not None:
            run = vars(prepared.operator._run)
            memories({key: one for key, one in run.items() if key != "_rooms"}, found)
    return sum(size for address, size in found.items() if address not in shared)


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_memory_is_that_of_the_file(dtype: torch.dtype, sparsity: float, tmp_path: Path) -> None:
    """Catches a form that becomes a larger one when it is loaded, offsets that become wider, a copy
    of values, and what each layer would keep of its last call."""
    model = nn.Sequential(*[nn.Linear(512, 512, bias=False, dtype=dtype) for _ in range(3)])
    state = {
        f"{i}.weight": pruned(512, 512, sparsity=sparsity, dtype=dtype, seed=i) for i in range(3)
    }
    save_file(state, tmp_path / "dense.safetensors")
    report = se.compress_file(tmp_path / "dense.safetensors", tmp_path / "small.safetensors")
    assert {row.form for row in report.weights} == {"deltas" if sparsity >= 0.95 else "bitmask"}
    for layer in model:
        layer.weight.data.zero_()
    se.compress(model)
    model.load_state_dict(load_file(tmp_path / "small.safetensors"))
    with torch.no_grad():
        for sides in (1, 40):
            model(torch.ones(sides, 512, dtype=dtype))
    assert held_by(model, dtype) <= 1.05 * (tmp_path / "small.safetensors").stat().st_size


@pytest.mark.parametrize("pattern", [(1, 8), (1, 4), (2, 8), (2, 4)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_memory_of_patterns(dtype: torch.dtype, pattern: tuple[int, int], tmp_path: Path) -> None:
    """Catches positions that become bits, which take more, and zeros stored twice."""
    n, m = pattern
    torch.manual_seed(0)
    weight = torch.randn(512, 512 // m, m).abs() + 1
    weight[torch.rand(weight.shape).argsort(2) >= n] = 0.0
    layer = nn.Linear(512, 512, bias=False, dtype=dtype)
    save_file({"0.weight": weight.reshape(512, 512).to(dtype)}, tmp_path / "dense.safetensors")
    report = se.compress_file(tmp_path / "dense.safetensors", tmp_path / "small.safetensors")
    assert report.weights[0].form == "positions"
    model = nn.Sequential(layer)
    layer.weight.data.zero_()
    se.compress(model)
    model.load_state_dict(load_file(tmp_path / "small.safetensors"))
    x = torch.randn(3, 512, dtype=dtype)
    with torch.no_grad():
        assert torch.allclose(model(x), x @ weight.reshape(512, 512).to(dtype).T, rtol=0.05, atol=1)
        model(torch.ones(40, 512, dtype=dtype))
    assert held_by(model, dtype) <= 1.05 * (tmp_path / "small.safetensors").stat().st_size
