"""What tests of compression share: weights with zeros, and files of them."""

import math
from pathlib import Path

import torch
from hypothesis import strategies as st
from safetensors.torch import save_file

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def pruned(*shape: int, sparsity: float, dtype: torch.dtype = torch.float32, seed: int = 0):
    """A random weight of which that share of entries, to rounding, is +0, in random places."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator).to(dtype)
    weight[weight == 0] = 1.0  # float16 rounds some to 0
    order = torch.rand(weight.numel(), generator=generator).argsort()
    weight.view(-1)[order[: round(sparsity * weight.numel())]] = 0.0
    return weight


def equal_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are the same to the bit, NaN and -0 too."""
    same = a.dtype == b.dtype and a.shape == b.shape
    word = WORDS.get(a.itemsize)
    return same and (torch.equal(a, b) if word is None else torch.equal(a.view(word), b.view(word)))


@st.composite
def weights(draw: st.DrawFn) -> torch.Tensor:
    """Any weight: matrices, batches and convolutions, of all dtypes, with NaN, infinity and -0.

    All zero, all full, empty rows, one column, patterns, and few entries far apart come often.
    """
    dtype = draw(st.sampled_from(DTYPES))
    shape = tuple(draw(st.lists(st.integers(1, 20), min_size=2, max_size=4)))
    if draw(st.booleans()):
        shape = (shape[0], draw(st.sampled_from([1, 7, 8, 16, 64, 600])))
    size = math.prod(shape)
    seed = draw(st.integers(0, 2**32 - 1))
    sparsity = draw(st.sampled_from([0.0, 0.5, 0.9, 0.97, 0.999, 1.0]))
    weight = pruned(*shape, sparsity=sparsity, dtype=dtype, seed=seed)
    kind = draw(st.sampled_from(["any", "row", "2:4", "1:8", "special"]))
    if kind == "row":
        weight[draw(st.integers(0, shape[0] - 1))] = 0.0
    elif kind in ("2:4", "1:8") and size % 8 == 0:
        n, m = map(int, kind.split(":"))
        groups = weight.view(-1, m)
        groups[:, n:] = 0.0
        weight = groups[:, torch.randperm(m, generator=torch.Generator().manual_seed(seed))]
        weight = weight.reshape(shape)
    elif kind == "special":
        places = draw(st.lists(st.integers(0, size - 1), max_size=5))
        for place, value in zip(places, [math.nan, math.inf, -0.0, -math.inf, 1.0], strict=False):
            weight.view(-1)[place] = value
    return weight


#: A tensor of every kind that a checkpoint holds.
def mixed() -> dict[str, torch.Tensor]:
    return {
        "fc.weight": pruned(96, 200, sparsity=0.5, dtype=torch.bfloat16),
        "fc.bias": torch.randn(96),
        "conv.weight": pruned(8, 8, 3, 3, sparsity=0.8, dtype=torch.float64),
        "rnn.weight_ih_l0": pruned(64, 65, sparsity=0.98),
        "half.weight": torch.stack([pruned(64, 16, sparsity=0.0), torch.zeros(64, 16)], 2)
        .reshape(64, 32)
        .half(),
        "experts.up": pruned(4, 16, 24, sparsity=0.7),
        "full.weight": torch.randn(5, 5),
        "embed_tokens.weight": torch.zeros(16, 16),
        "empty.weight": torch.zeros(0, 3),
        "ids": torch.arange(7),
    }


def save(path: Path, tensors: dict[str, torch.Tensor] | None = None, **metadata: str) -> Path:
    """A dense safetensors file."""
    save_file(mixed() if tensors is None else tensors, path, {"format": "pt", **metadata})
    return path
