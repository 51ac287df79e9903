"""The networks, what they take, and how they are trained.

LeNet-300-100 and LeNet-5 (LeCun et al. 1998), the latter as Caffe defines it, 20-50-500-10 with
431 thousand weights, which is the one that pruning papers use since Han et al. (arXiv 1506.02626);
VGG19 (Simonyan and Zisserman, arXiv 1409.1556, configuration E) with one linear layer on top, as
is usual at 32 x 32, its convolutions in bfloat16; an LSTM and a GRU that read an image row by row;
a small transformer whose tokens are rows; and multilayer perceptrons of any depth and width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.paper.training.data import channel, normalise, padded
from bench.paper.training.loop import Recipe
from spectral_engine.demo.lenet import LeNet300100

#: Of VGG19: convolutions by width, "M" halves the image.
VGG19: tuple[int | str, ...] = (
    64,
    64,
    "M",
    128,
    128,
    "M",
    *[256] * 4,
    "M",
    *[512] * 4,
    "M",
    *[512] * 4,
    "M",
)
CLASSES, ROWS = 10, 28
#: How many test images judge thinned networks.
FEW_IMAGES = 2500


@dataclass(frozen=True)
class Network:
    """build(width): a new network, its layers `width` times as wide as the original's.

    prepare: uint8 images (N, 28, 28) to what it takes. seeds: how many runs the tasks make of it.
    thinned: tasks try one method of each kind on it.
    judges: the first of the test images, by which one-shot pruning is judged; None for all.
    """

    name: str
    about: str
    build: Callable[[float], nn.Module]
    prepare: Callable[[Tensor], Tensor]
    recipe: Recipe
    seeds: int = 5
    thinned: bool = False
    judges: int | None = None


class Recurrent(nn.Module):
    """Rows of an image as a sequence; the last hidden state is classified."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], hidden: int) -> None:
        super().__init__()
        self.rnn = kind(ROWS, hidden, batch_first=True)
        self.head = nn.Linear(hidden, CLASSES)

    def forward(self, rows: Tensor) -> Tensor:
        """(N, 28, 28) to logits (N, 10)."""
        states: Tensor = self.rnn(rows)[0]
        logits: Tensor = self.head(states[:, -1])
        return logits


class Transformer(nn.Module):
    """Rows of an image as tokens, two pre-norm encoder layers, the mean token classified."""

    def __init__(self, hidden: int, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(ROWS, hidden)
        self.position = nn.Parameter(torch.randn(ROWS, hidden) * 0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                hidden, heads, 4 * hidden, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, CLASSES)

    def forward(self, rows: Tensor) -> Tensor:
        """(N, 28, 28) to logits (N, 10)."""
        tokens = self.embed(rows) + self.position
        for block in self.blocks:
            tokens = block(tokens)
        logits: Tensor = self.head(self.norm(tokens).mean(1))
        return logits


class Block(nn.Module):
    """Linear, normalisation if asked for, ReLU; around it a shortcut if asked for."""

    def __init__(self, inputs: int, outputs: int, norm: bool, shortcut: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        nn.init.kaiming_normal_(self.linear.weight, nonlinearity="relu")
        nn.init.zeros_(self.linear.bias)
        self.norm = nn.BatchNorm1d(outputs) if norm else nn.Identity()
        self.shortcut = shortcut

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, inputs) to (N, outputs)."""
        outputs = torch.relu(self.norm(self.linear(inputs)))
        return inputs + outputs if self.shortcut else outputs


def mlp(
    depth: int, width: int, norm: bool = False, residual: bool = False, outputs: int = CLASSES
) -> nn.Sequential:
    """`depth` hidden layers of `width`; residual: a shortcut around each but the first."""
    blocks = [
        Block(width if index else ROWS * ROWS, width, norm, residual and index > 0)
        for index in range(depth)
    ]
    return nn.Sequential(nn.Flatten(), *blocks, nn.Linear(width, outputs))


def lenet5(width: float) -> nn.Sequential:
    """Images (N, 1, 28, 28) to logits."""
    first, second, hidden = wide(20, width), wide(50, width), wide(500, width)
    return nn.Sequential(
        nn.Conv2d(1, first, 5), nn.MaxPool2d(2), nn.ReLU(),
        nn.Conv2d(first, second, 5), nn.MaxPool2d(2), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * second, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES),
    )  # fmt: skip


class InBfloat16(nn.Sequential):
    """Layers that compute in bfloat16, but for the last, from weights that stay float32.

    On a CPU that multiplies bfloat16, a training step of VGG19 takes 0.6 of the time in float32.
    The last layer stays in float32, since 8 bits of mantissa would make logits equal.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Images to logits, float32."""
        *layers, head = self
        with torch.autocast(images.device.type, torch.bfloat16):
            for layer in layers:
                images = layer(images)
        logits: Tensor = head(images.float())
        return logits


def vgg19(width: float, norm: bool) -> nn.Sequential:
    """Images (N, 3, 32, 32) to logits; initial weights as of He et al., arXiv 1502.01852."""
    layers: list[nn.Module] = []
    channels = 3
    for size in VGG19:
        if isinstance(size, str):
            layers.append(nn.MaxPool2d(2))
            continue
        convolution = nn.Conv2d(channels, wide(size, width), 3, padding=1, bias=not norm)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        if convolution.bias is not None:
            nn.init.zeros_(convolution.bias)
        channels = convolution.out_channels
        layers += [convolution, *([nn.BatchNorm2d(channels)] if norm else []), nn.ReLU()]
    return InBfloat16(*layers, nn.Flatten(), nn.Linear(channels, CLASSES))


def wide(size: int, width: float) -> int:
    """A layer's size at a relative width."""
    return max(1, round(size * width))


def _lenet300100(width: float) -> nn.Module:
    if width != 1.0:
        raise ValueError(f"width: lenet-300-100 comes at width 1 only; got {width}")
    return LeNet300100()


_ROWS = "rows of the image as a sequence"
_VGG = "Fashion-MNIST padded to 32x32x3, bfloat16"
NETWORKS = {
    network.name: network
    for network in (
        Network("lenet-300-100", "784-300-100-10", _lenet300100, normalise,
                Recipe(epochs=12, rate=2e-3, decay=0.1)),
        Network("lenet-5", "20-50-500-10", lenet5, channel,
                Recipe(epochs=6, rate=2e-3, decay=0.05), judges=5000),
        Network("vgg19", _VGG, lambda width: vgg19(width, norm=False), padded,
                Recipe(epochs=20, rate=5e-4, decay=0.05, warmup=0.1), seeds=3, thinned=True,
                judges=FEW_IMAGES),
        Network("vgg19-bn", _VGG, lambda width: vgg19(width, norm=True), padded,
                Recipe(epochs=20, rate=2e-3, decay=0.05, warmup=0.1), seeds=3, thinned=True,
                judges=FEW_IMAGES),
        Network("lstm", _ROWS, lambda width: Recurrent(nn.LSTM, wide(128, width)), normalise,
                Recipe(epochs=6, rate=2e-3, decay=0.01)),
        Network("gru", _ROWS, lambda width: Recurrent(nn.GRU, wide(128, width)), normalise,
                Recipe(epochs=6, rate=2e-3, decay=0.01)),
        Network("mlp", "two hidden layers", lambda width: mlp(2, wide(64, width)), normalise,
                Recipe(epochs=3, rate=2e-3, decay=0.01), thinned=True,
                judges=FEW_IMAGES),
        Network("transformer", _ROWS, lambda width: Transformer(4 * wide(16, width)), normalise,
                Recipe(epochs=6, rate=1e-3, decay=0.01, warmup=0.1)),
    )
}  # fmt: skip
