"""Small models of repeated blocks, and folders that hold their weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from spectral_engine.layers.architecture import parameters_on_meta

WIDTH, INSIDE, WORDS = 16, 24, 40


class Block(nn.Module):
    """Attention to itself and, in a decoder, to a memory; two linear layers."""

    def __init__(self, cross: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.cross = nn.MultiheadAttention(WIDTH, 2, batch_first=True) if cross else None
        self.up, self.down = nn.Linear(WIDTH, INSIDE), nn.Linear(INSIDE, WIDTH)
        self.unused = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, memory: Any = None) -> tuple[torch.Tensor, None]:
        y = self.norm(x)
        weights = torch.softmax(self.q(y) @ self.k(y).mT / 4, -1)
        x = x + self.o(weights @ self.v(y))
        if self.cross is not None:
            x = x + self.cross(x, memory, memory)[0]
        return x + self.down(torch.relu(self.up(x))), None


class Decoder(nn.Module):
    """Embeddings, blocks, a norm and a head."""

    def __init__(self, blocks: int = 3, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("computed", torch.tensor(0.5), persistent=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None) -> torch.Tensor:
        x = self.embed(input_ids) * self.scale + self.computed
        for block in self.blocks:
            x, _ = block(x)
        return self.head(self.norm(x))


class EncoderDecoder(nn.Module):
    """Two stacks of blocks; what the first gives goes to each block of the second."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.encoder = nn.ModuleList(Block() for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)
        self.decoder = nn.ModuleList(Block(cross=True) for _ in range(2))
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, input_ids: torch.Tensor, decoder_input_ids: torch.Tensor) -> torch.Tensor:
        memory = self.embed(input_ids)
        for block in self.encoder:
            memory, _ = block(memory)
        memory = self.norm(memory)
        x = self.embed(decoder_input_ids)
        for block in self.decoder:
            x, _ = block(x, memory)
        return self.head(x)


class SecretBlock(Block):
    """A block that leaves something behind, which the next one finds."""

    def __init__(self, left: list[torch.Tensor]) -> None:
        super().__init__()
        self.left = left

    def forward(self, x: torch.Tensor, memory: Any = None) -> tuple[torch.Tensor, None]:
        y, _ = super().forward(x + sum(self.left))
        self.left[:] = [y.mean()]
        return y, None


class Secretive(Decoder):
    """Blocks that share more than their outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left: list[torch.Tensor] = []
        self.blocks = nn.ModuleList(SecretBlock(self.left) for _ in range(3))

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None) -> torch.Tensor:
        self.left.clear()
        return super().forward(input_ids, attention_mask)


class Shared(Decoder):
    """The same blocks twice."""

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None) -> torch.Tensor:
        x = self.embed(input_ids)
        for block in (*self.blocks, *self.blocks):
            x, _ = block(x)
        return x


class Skipping(Decoder):
    """The last block is given what the first one gave, too."""

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None) -> torch.Tensor:
        first = x = self.embed(input_ids)
        for number, block in enumerate(self.blocks):
            x, _ = block(x + first if number == len(self.blocks) - 1 else x)
            first = x if number == 0 else first
        return x


class Changing(Decoder):
    """Which block comes first depends on the inputs."""

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None) -> torch.Tensor:
        x = self.embed(input_ids)
        blocks = list(self.blocks)
        for block in blocks if int(input_ids[0, 0]) % 2 == 0 else blocks[::-1]:
            x, _ = block(x)
        return x


def made(kind: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A model with weights, in evaluation mode."""
    torch.manual_seed(seed)
    return kind().eval()


def without_weights(kind: Callable[[], nn.Module]) -> nn.Module:
    """The model as it is built for a folder: parameters on the meta device."""
    with parameters_on_meta():
        return kind().eval()


def write_folder(model: nn.Module, folder: Path, shards: int = 2) -> Path:
    """A folder of its weights, tied ones once, in shards with an index, and a configuration."""
    folder.mkdir()
    kept: dict[int, str] = {}
    tensors = {}
    for name, tensor in model.state_dict().items():
        if kept.setdefault(tensor.data_ptr(), name) == name:
            tensors[name] = tensor.contiguous()
    names = sorted(tensors)
    files = {name: f"model-{i % shards + 1}.safetensors" for i, name in enumerate(names)}
    for file in sorted(set(files.values())):
        own = {name: tensors[name] for name in names if files[name] == file}
        save_file(own, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"architectures": ["Tiny"], "model_type": "tiny"}')
    return folder


def batches(count: int = 3, rows: int = 2, length: int = 6, seed: int = 1) -> list[dict[str, Any]]:
    """Token ids, with padding in the last batch."""
    make = torch.Generator().manual_seed(seed)
    found = [
        {"input_ids": 2 * torch.randint(0, WORDS // 2, (rows, length), generator=make)}
        for _ in range(count)
    ]
    mask = torch.ones(rows, length, dtype=torch.int64)
    mask[-1, length // 2 :] = 0
    found[-1]["attention_mask"] = mask
    return found
