"""The shapes of the prunable weights of well-known networks, for synthetic runs at their scale.

A network is a list of blocks, each repeated some times; shapes are (output, input), of
convolutions (output, input, height, width). Embeddings and biases are left out.

Sources: Touvron et al. 2023, Llama (7B, table 2) and Llama 2 (70B, with grouped queries, of 8
key-value heads); Wang et al. 2020, MiniLM, as in all-MiniLM-L6-v2; Simonyan and Zisserman 2015,
VGG, configuration E.
"""

import math
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Layer:
    """A weight and its shape."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Its number of entries."""
        return math.prod(self.shape)

    @property
    def full_rank(self) -> int:
        """The smaller side of its matrix."""
        return min(self.shape[0], math.prod(self.shape[1:]))


@dataclass(frozen=True)
class Block:
    """Layers that occur `count` times over."""

    name: str
    count: int
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class ModelShapes:
    """A network; dtype is the one that its weights are usually kept in."""

    name: str
    dtype: str
    blocks: tuple[Block, ...]

    @property
    def size(self) -> int:
        """The number of entries of all its weights."""
        return sum(block.count * layer.size for block in self.blocks for layer in block.layers)


def _llama(name: str, hidden: int, inner: int, keys: int, blocks: int) -> ModelShapes:
    layers = (
        Layer("q_proj", (hidden, hidden)),
        Layer("k_proj", (keys, hidden)),
        Layer("v_proj", (keys, hidden)),
        Layer("o_proj", (hidden, hidden)),
        Layer("gate_proj", (inner, hidden)),
        Layer("up_proj", (inner, hidden)),
        Layer("down_proj", (hidden, inner)),
    )
    head = Block("head", 1, (Layer("lm_head", (32_000, hidden)),))
    return ModelShapes(name, "bfloat16", (Block("block", blocks, layers), head))


def _minilm() -> ModelShapes:
    attention = (Layer(part, (384, 384)) for part in ("query", "key", "value", "attention.output"))
    inner = (Layer("intermediate", (1536, 384)), Layer("output", (384, 1536)))
    encoder = Block("encoder", 6, (*attention, *inner))
    pooler = Block("pooler", 1, (Layer("dense", (384, 384)),))
    return ModelShapes("minilm", "float32", (encoder, pooler))


def _vgg19() -> ModelShapes:
    widths = (3, 64, 64, 128, 128, *[256] * 4, *[512] * 8)
    features = tuple(
        Layer(f"conv{index}", (after, before, 3, 3))
        for index, (before, after) in enumerate(pairwise(widths), 1)
    )
    classifier = (
        Layer("fc1", (4096, 512 * 7 * 7)),
        Layer("fc2", (4096, 4096)),
        Layer("fc3", (1000, 4096)),
    )
    blocks = (Block("features", 1, features), Block("classifier", 1, classifier))
    return ModelShapes("vgg19", "float32", blocks)


MODELS = {
    model.name: model
    for model in (
        _llama("llama-7b", 4096, 11_008, 4096, 32),
        _llama("llama-70b", 8192, 28_672, 1024, 80),
        _minilm(),
        _vgg19(),
    )
}
