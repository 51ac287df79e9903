"""Made-up images that a network learns in an epoch, and settings for quick runs on them."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.paper.runs.jobs import Settings


def write_idx(path: Path, array: np.ndarray) -> None:
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noisy copies of ten patterns: a network learns them in an epoch, but not perfectly."""
    folder = tmp_path_factory.mktemp("idx")
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 256, (10, 28, 28))
    for prefix, count in (("train", 600), ("t10k", 200)):
        labels = rng.integers(0, 10, count).astype(np.uint8)
        noise = rng.normal(0, 60, (count, 28, 28))
        pixels = np.clip(0.5 * patterns[labels] + noise + 60, 0, 255).astype(np.uint8)
        write_idx(folder / f"{prefix}-images-idx3-ubyte", pixels)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", labels)
    return folder


@pytest.fixture(scope="session")
def make(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Settings]:
    """Settings for a quick run; one cache for all, so that nothing is trained twice."""
    cache = tmp_path_factory.mktemp("cache")

    def settings(**changes: Any) -> Settings:
        given = {"network": "lenet-300-100", "data": images, "cache": cache, "quick": True}
        return Settings(**{**given, "out": cache / "out", **changes})

    return settings
