"""Files of `torch.save`, read without running the code that a pickle may carry.

The file must hold a state dict, names to tensors, bare or under one of the usual keys of a training
checkpoint ("state_dict", "model_state_dict", "model"). What else the file holds is kept when it is
written as a torch file again. Zip archives, the format since torch 1.6, are mapped into memory, so
that a tensor is loaded when it is read; the older format is loaded whole.
"""

import copy
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from .base import CheckpointError, CheckpointFile, Edit, brief, naming, open_regular

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
WRAPPERS = ("state_dict", "model_state_dict", "model")
ZIP_MAGIC = b"PK\x03\x04"

#: What torch's restricted unpickler raises on bytes that are no checkpoint of its own making.
_MALFORMED = (
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
)
_BLOCKED = re.compile(r"[Uu]nsupported (?:global: )?GLOBAL (\S+)")


class TorchFile(CheckpointFile):
    """A state dict in a file of `torch.save`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._container = _load(path)
        self._wrapper = _wrapper(self._container, path)
        self._state = self._container[self._wrapper] if self._wrapper else self._container
        self._tensors = _tensors(self._state, path)
        self._ties = _ties(self._tensors)

    @property
    def names(self) -> list[str]:
        return list(self._tensors)

    @property
    def metadata(self) -> Mapping[str, object]:
        return {}

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].dtype

    def read(self, name: str) -> torch.Tensor:
        return self._tensors[name].detach().clone()

    def tied_to(self, name: str) -> str | None:
        return self._ties.get(name)

    def non_tensors(self) -> list[str]:
        return [name for name in self._state if name not in self._tensors]

    def write(self, file: BinaryIO, edit: Edit) -> None:
        state = copy.copy(self._state)
        for name, tensor in self._tensors.items():
            first = self._ties.get(name, name)
            if state[first] is not self._state[first]:
                state[name] = state[first]
                continue
            edited = edit(name)
            if edited is not None:  # the first of its names may be one that is not asked for
                state[first] = state[name] = _same_class(edited, tensor)
        container = state
        if self._wrapper:
            container = copy.copy(self._container)
            container[self._wrapper] = state
        _save(container, file)

    def close(self) -> None:
        self._container, self._state, self._tensors, self._ties = {}, {}, {}, {}


def _load(path: Path) -> dict[Any, Any]:
    with open_regular(path) as file, naming(path):
        zipped = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
    try:
        mapped = zipped and _is_stored(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript warns here and is refused just after.
            loaded = torch.load(str(path), map_location="cpu", weights_only=True, mmap=mapped)
    except _MALFORMED as error:
        blocked = _BLOCKED.search(str(error))
        found = (
            f"a pickle that would run {blocked[1]}"
            if blocked
            else f"{type(error).__name__} {brief(str(error))}"
        )
        expected = "a state dict saved by torch.save, with nothing in it but tensors and plain data"
        raise CheckpointError(path, expected, found) from error
    if not isinstance(loaded, dict):
        raise CheckpointError(path, "a state dict", type(loaded).__name__)
    return loaded


def _is_stored(path: Path) -> bool:
    """Whether an archive is uncompressed, as torch writes it: only then can it be mapped."""
    with zipfile.ZipFile(path) as archive:
        return all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())


def _wrapper(container: dict[Any, Any], path: Path) -> str | None:
    found = [key for key in WRAPPERS if isinstance(container.get(key), dict)]
    if len(found) > 1:
        raise CheckpointError(path, f"one state dict under {' or '.join(WRAPPERS)}", brief(found))
    return found[0] if found else None


def _tensors(state: dict[Any, Any], path: Path) -> dict[str, torch.Tensor]:
    """The tensors by name; nested containers are refused, since their tensors would go unseen."""
    tensors = {}
    for name, value in state.items():
        if not isinstance(name, str):
            raise CheckpointError(path, "names that are strings", brief(name))
        if isinstance(value, torch.Tensor):
            if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
                kind = f"{value.layout} on {value.device}, {value.dtype}"
                raise CheckpointError(path, f"{brief(name)} to be a dense tensor", kind)
            tensors[name] = value
        elif isinstance(value, dict | list | tuple) and not name.endswith("_extra_state"):
            raise CheckpointError(
                path,
                f"a flat state dict, or one under the key {' or '.join(WRAPPERS)}",
                f"{brief(name)} to hold a {type(value).__name__}",
            )
    return tensors


def _ties(tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    """Later name -> earlier name, for tensors that are the same elements of the same storage."""
    first: dict[object, str] = {}
    ties = {}
    for name, tensor in tensors.items():
        if tensor.numel() == 0:
            continue
        place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if place in first:
            ties[name] = first[place]
        else:
            first[place] = name
    return ties


def _same_class(tensor: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    if isinstance(original, torch.nn.Parameter):
        return torch.nn.Parameter(tensor.detach(), requires_grad=original.requires_grad)
    return tensor


def _save(container: dict[Any, Any], file: BinaryIO) -> None:
    """`torch.save`, with the error of the file (disk full, Ctrl-C) in place of torch's own."""
    try:
        torch.save(container, file)
    except RuntimeError as error:
        if error.__context__ is not None and not isinstance(error.__context__, RuntimeError):
            raise error.__context__ from None
        raise
