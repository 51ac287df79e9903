"""Results and states on disk, whole or not at all: JSON, and trees of tensors as safetensors."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from spectral_engine.checkpoints.atomic import replacing_file


def write_json(path: Path, value: Any) -> None:
    """Write JSON, with null for numbers that are not finite."""
    with replacing_file(path, force=True) as file:
        file.write((json.dumps(plain(value), indent=1) + "\n").encode())


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def remembered(path: Path, compute: Callable[[], Any]) -> Any:
    """The value in the file; if there is none, what `compute` gives, which is then written there.

    Either way the value has gone through JSON.
    """
    if not path.exists():
        value = compute()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, value)
    return read_json(path)


def save_tree(path: Path, tree: Any) -> None:
    """Dictionaries, lists, plain values and tensors, in one safetensors file."""
    tensors: dict[str, torch.Tensor] = {}
    header = json.dumps(_flatten(tree, tensors))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing_file(path, force=True) as file:
        file.write(save(tensors, {"tree": header}))


def load_tree(path: Path) -> Any:
    """What `save_tree` wrote; tuples have become lists."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _unflatten(json.loads(file.metadata()["tree"]), tensors)


def _flatten(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """JSON for the tree; tensors go to `tensors`, and their keys need not be strings."""
    if isinstance(tree, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = tree.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(tree, dict):
        return {"items": [[key, _flatten(value, tensors)] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        return [_flatten(value, tensors) for value in tree]
    return tree


def _unflatten(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(tree, list):
        return [_unflatten(value, tensors) for value in tree]
    if isinstance(tree, dict):
        if "tensor" in tree:
            return tensors[tree["tensor"]]
        return {key: _unflatten(value, tensors) for key, value in tree["items"]}
    return tree


def plain(value: Any) -> Any:
    """For JSON: floats to six significant digits, what is not finite as None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
