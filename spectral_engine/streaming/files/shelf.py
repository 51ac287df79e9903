"""What the pieces of a model gave for each batch, in files: written once, read batch by batch.

One file a step, or a file for each process that shares the batches out, its tensors end to end,
with an index that says where each batch's are, how they lie and how they are nested. All processes
read all files, however many wrote them. The index outlives the file, so that what has gone can be
stood in for by a tensor of its shape.

    step-0003.0.bin, step-0003.0.json      of the first process; step-0003.1.bin, ... of the second
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from spectral_engine.calibration.batches import RefusedError
from spectral_engine.checkpoints.atomic import new_file
from spectral_engine.checkpoints.formats.base import as_bytes
from spectral_engine.checkpoints.leftovers import remove

_MODE = 0o600
#: How an output is nested: a tensor by its number, a list, a tuple, a dictionary, or None.
_Nested = Any


class Shelf:
    """Outputs by step and batch, in a folder; see the head of this module.

    Args:
        folder: that exists.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._indices: dict[int, dict[int, _Entry]] = {}

    @contextmanager
    def writing(self, step: int, process: int = 0) -> Iterator["Writer"]:
        """Put outputs of a step, batch after batch; on the disk when the block ends.

        Args:
            process: which of those that share the batches out; each has files of its own.
        """
        data, index = (self._path(step, process, kind) for kind in ("bin", "json"))
        for path in (data, index):
            remove(path)
        with new_file(data, _MODE) as file:
            writer = Writer(file)
            yield writer
        with new_file(index, _MODE) as file:
            file.write(json.dumps(writer.index).encode())
        self._indices.pop(step, None)

    def get(self, step: int, batch: int) -> Any:
        """What a step gave for a batch; memory of the caller's own."""
        entry = self._entry(step, batch)
        tensors = []
        with open(entry.data, "rb") as file:
            file.seek(entry.start)
            for one in entry.tensors:
                flat = torch.empty(one["shape"], dtype=getattr(torch, one["dtype"]))
                memory = as_bytes(flat)
                if file.readinto(memory) != len(memory):
                    raise OSError(f"{entry.data}: expected {len(memory)} more bytes")
                strides = one["strides"]
                if list(flat.stride()) != strides:
                    flat = torch.empty_strided(one["shape"], strides, dtype=flat.dtype).copy_(flat)
                tensors.append(flat)
        return _packed(entry.nested, tensors)

    def like(self, step: int, batch: int, fill: float = 0.0) -> Any:
        """Something of the shape of what a step gave for a batch: zeros, or `fill` in floats."""
        entry = self._entry(step, batch)
        tensors = []
        for one in entry.tensors:
            tensor = torch.zeros(one["shape"], dtype=getattr(torch, one["dtype"]))
            if fill and tensor.is_floating_point():
                tensor.fill_(fill)
            tensors.append(tensor)
        return _packed(entry.nested, tensors)

    def forget(self, step: int) -> None:
        """Remove the values of a step; their shapes stay."""
        for path in self._folder.glob(f"step-{step:04}.*.bin"):
            remove(path)

    def forget_all_from(self, step: int) -> None:
        """Remove what is there of a step, and of those after it, whichever processes wrote it."""
        for path in self._folder.glob("step-*.*.*"):
            if int(path.name.split(".")[0].removeprefix("step-")) >= step:
                remove(path)
        self._indices.clear()

    def _entry(self, step: int, batch: int) -> "_Entry":
        if step not in self._indices:
            self._indices[step] = {
                one["batch"]: _Entry(
                    path.with_suffix(".bin"), one["start"], one["nested"], one["tensors"]
                )
                for path in self._folder.glob(f"step-{step:04}.*.json")
                for one in json.loads(path.read_bytes())
            }
        return self._indices[step][batch]

    def _path(self, step: int, process: int, kind: str) -> Path:
        return self._folder / f"step-{step:04}.{process}.{kind}"


@dataclass(frozen=True)
class _Entry:
    """Where an output lies: the file, its first byte, how it is nested, what its tensors are."""

    data: Path
    start: int
    nested: _Nested
    tensors: list[dict[str, Any]]


class Writer:
    """The outputs of one step on their way to a file; `index` says where they are."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.index: list[dict[str, Any]] = []

    def put(self, batch: int, output: Any, name: str) -> None:
        """Append what the piece of this name gave for the batch of this number.

        Raises:
            RefusedError: it is no tensor, and no tuple, list or dictionary of them.
        """
        tensors: list[torch.Tensor] = []
        start = self._file.tell()
        nested = _unpacked(output, tensors, name)
        described = []
        for tensor in tensors:
            self._file.write(as_bytes(tensor))
            described.append(
                {
                    "dtype": str(tensor.dtype).removeprefix("torch."),
                    "shape": list(tensor.shape),
                    "strides": list(torch.empty_like(tensor, device="meta").stride()),
                }
            )
        self.index.append({"batch": batch, "start": start, "nested": nested, "tensors": described})


def _unpacked(output: Any, tensors: list[torch.Tensor], name: str) -> _Nested:
    if output is None:
        return None
    if isinstance(output, torch.Tensor) and output.layout == torch.strided:
        tensors.append(output.detach().cpu())
        return len(tensors) - 1
    if type(output) in (tuple, list):
        return [type(output).__name__, *(_unpacked(one, tensors, name) for one in output)]
    if type(output) is dict:
        return {key: _unpacked(one, tensors, name) for key, one in output.items()}
    raise RefusedError(
        f"calibration: expected tensors, or tuples, lists and dictionaries of them, from {name}; "
        f"got {type(output).__name__}. Load the model and prune it in memory: "
        "se.prune(model, recipe, calibration=batches)"
    )


def _packed(nested: _Nested, tensors: list[torch.Tensor]) -> Any:
    if nested is None or isinstance(nested, int):
        return None if nested is None else tensors[nested]
    if isinstance(nested, Mapping):
        return {key: _packed(one, tensors) for key, one in nested.items()}
    values = [_packed(one, tensors) for one in nested[1:]]
    return tuple(values) if nested[0] == "tuple" else values
