"""What the calibrated pruning of a large folder takes on some processes, computed from rates.

    spectral-engine profile --scale [--model llama-70b|config.json]

Sizes and counts follow from the shapes of a block and are those of `streaming`: what is held while
one block is in memory, products of forward passes, of moments and of solving, bytes that are sent.
How many of them a second there are is measured on this machine (`rates_here`), one thread a
process, or taken from a data sheet with a share of the peak that is assumed (`H100`).

Not counted: what a model does between its matrices, the rounding of sums, and processes that wait
for each other because their batches differ.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from spectral_engine.distributed.groups import steps
from spectral_engine.matrix.moments import Moments
from spectral_engine.matrix.sums import Accumulator, moment_bytes, sum_bytes
from spectral_engine.profiling.shapes import BlockShapes, LayerShape, ModelShapes, llama_shapes
from spectral_engine.recipe.presets import preset
from spectral_engine.recipe.refits import workspace_of
from spectral_engine.sparsifying.stacks import sparsify_layer
from spectral_engine.streaming.estimate import PASSES, SOLVES

RECIPES = ("wanda", "sparsegpt")
PROCESSES = (1, 8, 64)
#: Processes of one machine; more are on several.
_MACHINE = 8
#: Layers of a llama's block that see the same inputs.
_STAGES = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
#: The shapes that rates are measured on: tokens, features.
_TOKENS, _FEATURES = 512, 2048


@dataclass(frozen=True)
class Rates:
    """What one process does in a second.

    name: of the hardware. forward, moments, solving: additions and products, of matrices in the
    model's dtype, of sums of x x^T and of a refit. entries: that are scored and thresholded.
    disk: bytes read or written, by all processes of a machine together. inside, between: bytes that
    a process sends within a machine, and between machines.
    """

    name: str
    forward: float
    moments: float
    solving: float
    entries: float
    disk: float
    inside: float
    between: float


#: NVIDIA H100 SXM by its data sheet: 989e12 bfloat16 and 67e12 float32 operations a second, of
#: which 40 % are assumed, 10 % in factorisations; 3.35e12 bytes a second of memory, three passes
#: over bfloat16; NVLink 450e9, a 400 Gb/s adapter for each GPU, a disk of 5e9.
H100 = Rates("H100", 396e12, 27e12, 6.7e12, 3.35e12 / 6, 5e9, 450e9, 50e9)


@dataclass(frozen=True)
class ScaleRow:
    """A model on some processes, by one recipe.

    memory: bytes that a process holds at most. disk: bytes beside the target meanwhile.
    traffic: bytes that a process sends, and about as many that it receives.
    seconds: by the name of the hardware.
    """

    model: str
    recipe: str
    processes: int
    memory: int
    disk: int
    traffic: int
    seconds: Mapping[str, float]


def scale_rows(
    model: ModelShapes, samples: int, length: int, rates: Sequence[Rates]
) -> list[ScaleRow]:
    """The rows of a model, by both recipes on one, eight and 64 processes.

    Args:
        model: a llama, by its shapes.
        samples: sequences of the calibration, one a batch. length: tokens of each.
        rates: of each kind of hardware.
    """
    return [
        _row(model, recipe, processes, samples, length, rates)
        for recipe in RECIPES
        for processes in PROCESSES
    ]


def shapes_of_config(path: Path) -> ModelShapes:
    """The shapes of a model like llama, of its config.json or the folder that holds it.

    Raises:
        ValueError: a number is missing, with its name.
    """
    file = path / "config.json" if path.is_dir() else path
    found = json.loads(file.read_text(encoding="utf-8"))
    wanted = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    for name in (*wanted, "vocab_size"):
        if type(found.get(name)) is not int:
            raise ValueError(f"model: expected {name}, a number, in {file}; got {found.get(name)}")
    hidden, inner, blocks, heads = (found[name] for name in wanted)
    keys = found.get("num_key_value_heads") or heads
    width = found.get("head_dim") or hidden // heads
    dtype = str(found.get("dtype") or found.get("torch_dtype") or "bfloat16")
    return llama_shapes(
        file.parent.name or "model", hidden, inner, keys * width, blocks, found["vocab_size"], dtype
    )


def rates_here(dtype: str) -> Rates:
    """The rates of one thread of this machine, measured in a few seconds; disk and network assumed.

    Args:
        dtype: that the model runs in.
    """
    make = torch.Generator().manual_seed(0)
    x = torch.randn(_TOKENS, _FEATURES, generator=make)
    weight = torch.randn(_FEATURES, _FEATURES, generator=make)
    one, other = x.to(getattr(torch, dtype)), weight.to(getattr(torch, dtype))
    total = Accumulator(_FEATURES, None, torch.float32, torch.device("cpu"), rows=_TOKENS)
    square = weight[:1024, :1024].contiguous()
    moments = Moments.of(x[:, :1024], 1024)
    ways = {name: preset(name) for name in RECIPES}
    solve = SOLVES * 2 * 1024**2 * 2048
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        select = _seconds(lambda: sparsify_layer(square, "w", ways["wanda"], 0.5, moments, seed=0))
        refit = _seconds(
            lambda: sparsify_layer(square, "w", ways["sparsegpt"], 0.5, moments, seed=0)
        )
        return Rates(
            "CPU",
            2 * _TOKENS * _FEATURES**2 / _seconds(lambda: one @ other),
            _TOKENS * _FEATURES**2 / _seconds(lambda: total.add(x)),
            solve / refit,
            1024**2 / select,
            0.5e9, 1e9, 1e9,
        )  # fmt: skip
    finally:
        torch.set_num_threads(threads)


def _seconds(call: Callable[[], object]) -> float:
    """Of processor time, so that others on the machine do not count."""
    best = math.inf
    for _ in range(4):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return best


def _row(
    model: ModelShapes, recipe: str, processes: int, samples: int, length: int,
    rates: Sequence[Rates],
) -> ScaleRow:  # fmt: skip
    block, head = model.blocks
    dtype = getattr(torch, model.dtype)
    layers = {layer.name: layer for layer in block.layers}
    stages = [[layers[name] for name in names] for names in _STAGES]
    hidden = layers["q_proj"].shape[1]
    size = sum(layer.size for layer in block.layers)
    weights = (model.size + head.layers[0].size) * dtype.itemsize  # with the embedding
    pruned = block.count * size * dtype.itemsize
    sent = sum(
        sum_bytes(layer.shape[1], None) + layer.size * dtype.itemsize for layer in block.layers
    )
    sent = block.count * sent if processes > 1 else 0
    seconds = {}
    for one in rates:
        # The scale of sums is learnt from the first batch, which every process runs.
        mine = -(-samples // processes) + (processes > 1)
        forward = PASSES * (2 * length * size + 4 * length**2 * hidden)
        gathered = length * sum(stage[0].shape[1] ** 2 for stage in stages)
        alone = sum(_longest(stage, recipe, processes, one) for stage in stages)
        spent = mine * (forward / one.forward + gathered / one.moments) + alone
        moved = sent / (one.inside if processes <= _MACHINE else one.between)
        seconds[one.name] = block.count * spent + moved + (3 * weights + 2 * pruned) / one.disk
    return ScaleRow(
        model.name, recipe, processes,
        _memory(block, head, stages, recipe, processes, length, dtype),
        pruned + 2 * samples * length * hidden * dtype.itemsize, sent, seconds,
    )  # fmt: skip


def _longest(stage: Sequence[LayerShape], recipe: str, processes: int, rates: Rates) -> float:
    """Seconds until every layer of a stage is pruned, each by one process."""
    costs = []
    for layer in stage:
        m, n = layer.shape
        solve = SOLVES * 2 * n**2 * (n + m) / rates.solving if recipe == "sparsegpt" else 0.0
        costs.append(solve + layer.size / rates.entries)
    return sum(max(costs[index] for index in step) for step in steps(costs, processes))


def _memory(
    block: BlockShapes, head: BlockShapes, stages: Sequence[Sequence[LayerShape]], recipe: str,
    processes: int, length: int, dtype: torch.dtype,
) -> int:  # fmt: skip
    """Of one process: a block, a batch inside it, and the moments of the largest stage."""
    copies, matrices = workspace_of(preset(recipe).refit)
    largest = 0
    for stage in stages:
        n = stage[0].shape[1]
        sums, result = sum_bytes(n, None), moment_bytes(n, None, dtype)
        work = copies * result + matrices * 4 * max(layer.size for layer in stage)
        both = sums if processes == 1 else 2 * sums  # those of all processes beside its own
        largest = max(largest, both + max(result, result + work - sums))
    hidden = block.layers[0].shape[1]
    rows = sum(layer.shape[0] for layer in block.layers)
    own = sum(layer.size for layer in block.layers) + length * (2 * hidden + rows)
    return max(dtype.itemsize * own + largest, dtype.itemsize * head.layers[0].size)
