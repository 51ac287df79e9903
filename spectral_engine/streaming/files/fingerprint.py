"""What a run depends on, told apart by values that JSON holds: two runs of one are the same run."""

import hashlib
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spectral_engine.calibration.request import Calibration
from spectral_engine.recipe.recipe import Recipe

#: Bytes that are read at each of some places of a file.
_SAMPLE = 1 << 16
_PLACES = 16


def fingerprint_of(
    source: Path,
    recipes: Sequence[Recipe],
    calibration: Calibration | None,
    versions: Mapping[str, str],
    **arguments: Any,
) -> dict[str, Any]:
    """What the bytes of a pruning depend on, by what it is of.

    Args:
        source: a file or a folder of weights. A file counts as the same while its size, its time
            and what is read at some places of it are.
        recipes, calibration: of the run; None without calibration. Of a function, such as
            `positions`, its name and its code count.
        versions: of packages that compute, by name.
        arguments: other arguments of the run, plain values.

    Returns:
        Plain values for JSON.
    """
    return {
        "source": {
            str(path.relative_to(source)): _of_file(path)
            for path in (sorted(source.rglob("*")) if source.is_dir() else [source])
            if path.is_file()
        },
        "recipe": [recipe.to_dict() for recipe in recipes],
        "calibration": None
        if calibration is None
        else {
            "batches": [_digest(batch) for batch in calibration.batches],
            "forward": _of_function(calibration.forward),
            "positions": _of_function(calibration.positions),
            "max_samples": calibration.max_samples,
            "sequential": calibration.sequential is not False,
        },
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": torch.__version__,
            **versions,
        },
        **arguments,
    }


def _of_file(path: Path) -> list[Any]:
    found = os.stat(path)
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        for place in range(_PLACES):
            file.seek(found.st_size * place // _PLACES)
            digest.update(file.read(_SAMPLE))
        file.seek(max(0, found.st_size - _SAMPLE))
        digest.update(file.read(_SAMPLE))
    return [found.st_size, found.st_mtime_ns, digest.hexdigest()]


def _of_function(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    code = getattr(value, "__code__", None)
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return name if code is None else f"{name} {hashlib.blake2b(code.co_code).hexdigest()[:16]}"


def _digest(batch: Any) -> str:
    digest = hashlib.blake2b(digest_size=16)
    _update(digest, batch)
    return digest.hexdigest()


def _update(digest: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        values = value.detach().cpu().contiguous()
        digest.update(f"{values.dtype}{tuple(values.shape)}".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            digest.update(f"{key!r}:".encode())
            _update(digest, item)
    elif isinstance(value, tuple | list):
        digest.update(f"{type(value).__name__}{len(value)}".encode())
        for item in value:
            _update(digest, item)
    else:
        digest.update(repr(value).encode())
