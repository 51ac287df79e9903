"""Images in uint8, split once and for all into training, validation and test parts."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from spectral_engine.demo.data import PIXEL_MEAN, PIXEL_STD, load_idx_folder

#: One image in this many is for validation: 5,000 of Fashion-MNIST's 60,000.
VALIDATION_SHARE = 12


@dataclass(frozen=True)
class Part:
    """Images (N, 28, 28), uint8, and labels (N,), int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Data:
    """The three parts; every choice is made on `validation`, `test` is for the figures."""

    train: Part
    validation: Part
    test: Part
    fingerprint: str


@lru_cache(maxsize=2)
def load(folder: Path, subset: int | None = None) -> Data:
    """The idx files of a folder; `subset` takes that many of the training images.

    Raises:
        FileNotFoundError: says how to get the files. ValueError: files that do not fit each other,
            or fewer images than asked for.
    """
    images, labels = (torch.from_numpy(array) for array in load_idx_folder(folder, "train"))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    held = len(images) // VALIDATION_SHARE
    kept = order[held:]
    if subset is not None:
        if not 1 <= subset <= len(kept):
            raise ValueError(f"subset: expected 1 to {len(kept)} training images; got {subset}")
        kept = kept[:subset]
    test = tuple(torch.from_numpy(array) for array in load_idx_folder(folder, "test"))
    parts = (
        Part(images[kept], labels[kept].long()),
        Part(images[order[:held]], labels[order[:held]].long()),
        Part(test[0], test[1].long()),
    )
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part.images.numpy().tobytes())
        digest.update(part.labels.numpy().tobytes())
    train, validation, held_out = parts
    return Data(train, validation, held_out, digest.hexdigest())


def normalise(images: Tensor) -> Tensor:
    """uint8 to float32 of zero mean and unit variance over the training set."""
    return images.float().sub_(255 * PIXEL_MEAN).div_(255 * PIXEL_STD)


def padded(images: Tensor) -> Tensor:
    """(N, 28, 28) to (N, 3, 32, 32): two black pixels on each side, the same in three channels."""
    framed = torch.nn.functional.pad(images, (2, 2, 2, 2))
    return normalise(framed).unsqueeze(1).expand(-1, 3, -1, -1)


def channel(images: Tensor) -> Tensor:
    """(N, 28, 28) to (N, 1, 28, 28)."""
    return normalise(images).unsqueeze(1)
