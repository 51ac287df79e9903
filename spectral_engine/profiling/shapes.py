"""The shapes of the prunable weights of well-known networks, for synthetic runs at their scale.

A network is a list of blocks, each repeated some times; shapes are (output, input), of
convolutions (output, input, height, width). Embeddings and biases are left out.

Sources: Touvron et al. 2023, Llama (7B, table 2) and Llama 2 (70B, with grouped queries, of 8
key-value heads); Llama team 2024, Llama 3 (405B, table 3); Wang et al. 2020, MiniLM, as in
all-MiniLM-L6-v2; Simonyan and Zisserman 2015, VGG, configuration E.
"""

import math
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class LayerShape:
    """The shape of one weight.

    name: of the layer within its block
    shape: (output, input), of a convolution (output, input, height, width)
    """

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
class BlockShapes:
    """Layers that a network has `count` times over, one after the other."""

    name: str
    count: int
    layers: tuple[LayerShape, ...]


@dataclass(frozen=True)
class ModelShapes:
    """The shapes of a network's weights; dtype is the one that they are usually stored in."""

    name: str
    dtype: str
    blocks: tuple[BlockShapes, ...]

    @property
    def size(self) -> int:
        """The number of entries of all its weights."""
        return sum(block.count * layer.size for block in self.blocks for layer in block.layers)


def llama_shapes(
    name: str, hidden: int, inner: int, keys: int, blocks: int, words: int = 32_000,
    dtype: str = "bfloat16",
) -> ModelShapes:  # fmt: skip
    """The shapes of a network like llama.

    Args:
        hidden, inner, keys: features of the blocks, inside of their second half, and of all keys.
        blocks, words: how many there are.
    """
    layers = (
        LayerShape("q_proj", (hidden, hidden)),
        LayerShape("k_proj", (keys, hidden)),
        LayerShape("v_proj", (keys, hidden)),
        LayerShape("o_proj", (hidden, hidden)),
        LayerShape("gate_proj", (inner, hidden)),
        LayerShape("up_proj", (inner, hidden)),
        LayerShape("down_proj", (hidden, inner)),
    )
    head = BlockShapes("head", 1, (LayerShape("lm_head", (words, hidden)),))
    return ModelShapes(name, dtype, (BlockShapes("block", blocks, layers), head))


def _minilm() -> ModelShapes:
    attention = (
        LayerShape(part, (384, 384)) for part in ("query", "key", "value", "attention.output")
    )
    inner = (LayerShape("intermediate", (1536, 384)), LayerShape("output", (384, 1536)))
    encoder = BlockShapes("encoder", 6, (*attention, *inner))
    pooler = BlockShapes("pooler", 1, (LayerShape("dense", (384, 384)),))
    return ModelShapes("minilm", "float32", (encoder, pooler))


def _vgg19() -> ModelShapes:
    widths = (3, 64, 64, 128, 128, *[256] * 4, *[512] * 8)
    features = tuple(
        LayerShape(f"conv{index}", (after, before, 3, 3))
        for index, (before, after) in enumerate(pairwise(widths), 1)
    )
    classifier = (
        LayerShape("fc1", (4096, 512 * 7 * 7)),
        LayerShape("fc2", (4096, 4096)),
        LayerShape("fc3", (1000, 4096)),
    )
    blocks = (BlockShapes("features", 1, features), BlockShapes("classifier", 1, classifier))
    return ModelShapes("vgg19", "float32", blocks)


MODELS = {
    model.name: model
    for model in (
        llama_shapes("llama-7b", 4096, 11_008, 4096, 32),
        llama_shapes("llama-70b", 8192, 28_672, 1024, 80),
        llama_shapes("llama-405b", 16_384, 53_248, 1024, 126, 128_256),
        _minilm(),
        _vgg19(),
    )
}
