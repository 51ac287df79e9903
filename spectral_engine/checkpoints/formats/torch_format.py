"""Files of `torch.save`, read one tensor at a time; the code that a pickle may carry is not run.

The file must hold a state dict, names to tensors, bare or under one of the usual keys of a training
checkpoint ("state_dict", "model_state_dict", "model"). What else the file holds is kept byte for
byte when it is written as a torch file again: an edit changes the bytes of a storage, so that
tensors that are the same memory, one transposed included, stay the same memory.

Not every tensor can be edited: one whose elements share memory (an expanded one), or that shares
a part of its memory with another tensor, would change what was not asked for. `reason_to_keep`
says so.
"""

import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import torch

from .base import (
    CheckpointError,
    CheckpointFile,
    Edit,
    as_bytes,
    brief,
    check_name,
    naming,
    open_weights,
)
from .torch_pickle import EXPECTED
from .torch_storage import Buffer, open_storage_file
from .torch_tensors import Foreign, StoredTensor, clusters, overlapping

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
WRAPPERS = ("state_dict", "model_state_dict", "model")
#: How deep a second set of weights is looked for in a training checkpoint.
DEPTH = 4

#: What pickletools, zipfile and zlib raise on damaged bytes.
_MALFORMED = (
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
)


class TorchFile(CheckpointFile):
    """A state dict in a file of `torch.save`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with ExitStack() as on_failure:
            file = on_failure.enter_context(open_weights(path))
            self._size = os.fstat(file.fileno()).st_size
            with _well_formed(path):
                self._storages = open_storage_file(file, self._size, path)
                container = self._storages.unpickled.value
                if not isinstance(container, dict):
                    raise CheckpointError(path, "a state dict", _kind(container))
                self._wrapper = _wrapper(container, path)
                self._container = container
                self._state = container[self._wrapper] if self._wrapper else container
                self._tensors = _tensors(self._state, path)
                self._find_sharing()
            self._open = on_failure.pop_all()

    @property
    def names(self) -> list[str]:
        return list(self._tensors)

    @property
    def metadata(self) -> Mapping[str, object]:
        return {}

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].dtype

    def read(self, name: str) -> torch.Tensor:
        tensor = self._tensors[name]
        if tensor.nbytes > max(self._size, tensor.storage.size):
            raise CheckpointError(
                self.path,
                f"{brief(name)} to take no more bytes than the file, {self._size}",
                f"an expanded tensor of {tensor.nbytes}, shape {brief(tensor.shape)}",
            )
        if tensor.row_major:
            result = torch.empty(tensor.shape, dtype=tensor.dtype)
            self._storages.fill(tensor.storage.key, tensor.start, as_bytes(result))
            return result
        view = _view(tensor, self._bytes(tensor.storage.key, tensor.start, tensor.end), 0)
        return view if tensor.end - tensor.start == tensor.nbytes else view.clone()

    def tied_to(self, name: str) -> str | None:
        return self._ties.get(name)

    def hide(self, names: Collection[str]) -> None:
        for name in names:
            del self._tensors[name]
        self._find_sharing()

    def from_tied(self, name: str, value: torch.Tensor) -> torch.Tensor:
        tensor, first = self._tensors[name], self._tensors[self._ties[name]]
        if (tensor.shape, tensor.stride) == (first.shape, first.stride):
            return value
        memory = torch.empty_strided(first.shape, first.stride, dtype=value.dtype).copy_(value)
        return memory.as_strided(tensor.shape, tensor.stride)

    def reason_to_keep(self, name: str) -> str | None:
        return self._kept.get(self._ties.get(name, name))

    def other_weights(self) -> dict[str, str]:
        beside = {key: value for key, value in self._container.items() if key != self._wrapper}
        return dict(self._second_sets(beside, ())) if self._wrapper else {}

    def non_tensors(self) -> list[str]:
        return [str(name) for name in self._state if name not in self._tensors]

    def write(self, file: BinaryIO, edit: Edit) -> None:
        self._storages.write(file, lambda key: self._content(key, edit))

    def close(self) -> None:
        self._open.close()

    def _find_sharing(self) -> None:
        """Note the ties, the tensors that cannot be edited, and the order of the storages."""
        first: dict[object, str] = {}
        self._ties: dict[str, str] = {}
        for name, tensor in self._tensors.items():
            if 0 not in tensor.shape:
                earlier = first.setdefault(tensor.place, name)
                if earlier != name:
                    self._ties[name] = earlier
        names: dict[StoredTensor, str] = {}
        for name, tensor in self._tensors.items():
            names.setdefault(tensor, name)
        self._kept: dict[str, str] = {}
        self._clusters: dict[str, list[list[str]]] = {}
        by_storage: dict[str, list[StoredTensor]] = {}
        for tensor in self._storages.unpickled.tensors:
            if 0 not in tensor.shape:
                by_storage.setdefault(tensor.storage.key, []).append(tensor)
        for key, tensors in by_storage.items():
            for cluster in clusters(tensors):
                shared = overlapping(cluster)
                named = [names[tensor] for tensor in cluster if tensor in names]
                named = [name for name in named if name not in self._ties]
                for name in named:
                    if not self._tensors[name].spread:
                        self._kept[name] = (
                            "its elements share memory, as those of an expanded tensor"
                        )
                    elif self._tensors[name] in shared:
                        self._kept[name] = "it shares a part of its memory with another tensor"
                free = [name for name in named if name not in self._kept]
                if free:
                    self._clusters.setdefault(key, []).append(free)

    def _content(self, key: str, edit: Edit) -> Iterator[Buffer]:
        """The bytes of a storage, with the edits of the tensors in it."""
        position = 0
        for names in self._clusters.get(key, []):
            start = min(self._tensors[name].start for name in names)
            yield from self._storages.copy(key, position, start)
            position = max(self._tensors[name].end for name in names)
            yield from self._edited(names, start, position, edit)
        yield from self._storages.copy(key, position, self._storages.sizes[key])

    def _edited(self, names: list[str], start: int, end: int, edit: Edit) -> Iterable[Buffer]:
        """Bytes [start, end) of a storage, which the named tensors reach over."""
        key = self._tensors[names[0]].storage.key
        if len(names) == 1 and self._tensors[names[0]].row_major:
            value = edit(names[0])
            return self._storages.copy(key, start, end) if value is None else [as_bytes(value)]
        memory = None
        for name in names:
            value = edit(name)
            if value is None:
                continue
            if memory is None:
                memory = self._bytes(key, start, end)
            tensor = self._tensors[name]
            _view(tensor, memory, tensor.start - start).copy_(value)
        return self._storages.copy(key, start, end) if memory is None else [as_bytes(memory)]

    def _bytes(self, key: str, start: int, end: int) -> torch.Tensor:
        memory = torch.empty(end - start, dtype=torch.uint8)
        self._storages.fill(key, start, as_bytes(memory))
        return memory

    def _second_sets(self, value: object, path: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        """Collections beside the state dict whose tensors have the names or shapes of its own."""
        if len(path) > DEPTH or any("optim" in part.lower() for part in path):
            return
        reason = self._second_set(value) if path else None
        if reason is not None:
            yield ".".join(path), reason
            return
        if isinstance(value, dict):
            for key, item in value.items():
                yield from self._second_sets(item, (*path, str(key)))

    def _second_set(self, value: object) -> str | None:
        """What to say of a collection that holds the weights of the state dict once more, if so."""
        own = {name: tensor for name, tensor in self._tensors.items() if len(tensor.shape) > 1}
        items: Iterable[object] = ()
        if isinstance(value, dict):
            ends = {end for name in own for end in _ends(name) if "." in end}
            named = {name: item for name, item in value.items() if isinstance(name, str)}
            items = (
                item
                for name, item in named.items()
                if name in ends or not own.keys().isdisjoint(_ends(name))
            )
        elif isinstance(value, list):
            items = value
        shapes = {tensor.shape for tensor in own.values()}
        found = [item for item in items if isinstance(item, StoredTensor) and item.shape in shapes]
        places = {tensor.place for tensor in own.values()}
        if not found:
            return None
        if all(tensor.place in places for tensor in found):
            return f"{len(found)} weights that are the memory of the first set, and change with it"
        return f"a second set of {len(found)} weights, not changed (nor written to safetensors)"


def _ends(name: str) -> Iterator[str]:
    """A name, and what is left of it without "module.", "ema_model." and so on in front."""
    yield name
    while "." in name:
        name = name.partition(".")[2]
        yield name


def _view(tensor: StoredTensor, memory: torch.Tensor, start: int) -> torch.Tensor:
    """A tensor's elements in bytes of its storage, the first of them at byte `start`."""
    offset = start // tensor.dtype.itemsize
    return memory.view(tensor.dtype).as_strided(tensor.shape, tensor.stride, offset)


@contextmanager
def _well_formed(path: Path) -> Iterator[None]:
    """Whatever the parsers say about damaged bytes, as one kind of error."""
    try:
        with naming(path):
            yield
    except CheckpointError:
        raise
    except _MALFORMED as error:
        found = f"{type(error).__name__} {brief(str(error))}"
        raise CheckpointError(path, EXPECTED, found) from error


def _kind(value: object) -> str:
    if isinstance(value, StoredTensor):
        return "Tensor"
    return value.kind if isinstance(value, Foreign) else type(value).__name__


def _wrapper(container: dict[object, object], path: Path) -> str | None:
    found = [key for key in WRAPPERS if isinstance(container.get(key), dict)]
    if len(found) > 1:
        raise CheckpointError(path, f"one state dict under {' or '.join(WRAPPERS)}", brief(found))
    return found[0] if found else None


def _tensors(state: dict[object, object], path: Path) -> dict[str, StoredTensor]:
    """The tensors by name; nested containers are refused, since their tensors would go unseen."""
    tensors = {}
    for name, value in state.items():
        if not isinstance(name, str):
            raise CheckpointError(path, "names that are strings", brief(name))
        check_name(name, path)
        if isinstance(value, StoredTensor):
            tensors[name] = value
        elif isinstance(value, Foreign) and value.tensor:
            raise CheckpointError(path, f"{brief(name)} to be a dense tensor", value.kind)
        elif isinstance(value, dict | list | tuple) and not name.endswith("_extra_state"):
            raise CheckpointError(
                path,
                f"a flat state dict, or one under the key {' or '.join(WRAPPERS)}",
                f"{brief(name)} to hold a {type(value).__name__}",
            )
    return tensors
