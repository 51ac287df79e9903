"""A compressed file read as if it were dense: every tensor under its own name, shape and dtype.

Written again, it becomes the dense file that it was made from. One tensor is in memory at a time.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from spectral_engine.checkpoints.formats.base import (
    CheckpointError,
    CheckpointFile,
    Edit,
    as_bytes,
    brief,
)
from spectral_engine.checkpoints.formats.safetensors_format import (
    CHUNK,
    LENGTH_BYTES,
    TORCH_DTYPES,
    SafetensorsFile,
    write_safetensors,
)
from spectral_engine.checkpoints.sparse import checks, forms, layout


class Stored(SafetensorsFile):
    """A compressed file as it is stored: its parts."""

    def copy_tensor(self, name: str, file: BinaryIO) -> None:
        """Write a tensor's bytes to another file, in chunks."""
        entry = self._entries[name]
        self._copy(entry.start, entry.end, file)

    def count_words(self, name: str, size: int) -> int:
        """How many words of that many bytes are not 0; read in chunks, into the same memory."""
        entry, count = self._entries[name], 0
        buffer = memoryview(bytearray(min(CHUNK, entry.end - entry.start)))
        for position in range(entry.start, entry.end, CHUNK):
            chunk = buffer[: min(CHUNK, entry.end - position)]
            self._fill(chunk, position)
            count += int(np.count_nonzero(np.frombuffer(chunk, f"u{size}")))
        return count

    def read_first(self, name: str, rows: int) -> torch.Tensor:
        """The first rows of a tensor whose dtype torch has, at most so many."""
        entry = self._entries[name]
        rows = min(rows, entry.shape[0])
        tensor = torch.empty((rows, *entry.shape[1:]), dtype=TORCH_DTYPES[entry.dtype])
        self._fill(as_bytes(tensor), entry.start)
        return tensor

    def read_blocks(self, name: str, size: int) -> Iterator[torch.Tensor]:
        """A tensor whose dtype torch has, as a matrix, some rows (k, columns) after another, about
        so many bytes each; each block is in the memory of the one before.
        """
        entry = self._entries[name]
        m, n = forms.matrix_shape(entry.shape)
        dtype = TORCH_DTYPES[entry.dtype]
        rows = max(1, size // (n * dtype.itemsize))
        room = torch.empty((min(rows, m), n), dtype=dtype)
        for low in range(0, m, rows):
            block = room[: min(rows, m - low)]
            self._fill(as_bytes(block), entry.start + low * n * dtype.itemsize)
            yield block

    def bytes_of(self, name: str) -> int:
        """How many bytes a tensor takes."""
        entry = self._entries[name]
        return entry.end - entry.start

    def format_dtype(self, name: str) -> str:
        """The format's own name of a tensor's dtype."""
        return self._entries[name].dtype

    def header_text(self) -> str:
        """The JSON of the header, as it is."""
        self._file.seek(LENGTH_BYTES)
        return self._file.read(self._data_start - LENGTH_BYTES).decode()


def open_safetensors(path: Path) -> "SafetensorsFile | CompressedFile":
    """Open a .safetensors file; one that is compressed gives dense tensors."""
    stored = Stored(path)
    try:
        if layout.is_sparse(stored.metadata, stored.names):
            return CompressedFile(stored)
    except BaseException:
        stored.close()
        raise
    return stored


class CompressedFile(CheckpointFile):
    """A compressed .safetensors file, seen as the dense one."""

    def __init__(self, stored: Stored) -> None:
        self.path, self.stored = stored.path, stored
        layout.check_version(stored.metadata, stored.path)
        text = stored.metadata.get(layout.HEADER_KEY)
        self._header = None if text is None else layout.parse_dense_header(str(text), self.path)
        forms_by_prefix = layout.forms_in(stored.names)
        self._prefix: dict[str, str] = {}
        self._form: dict[str, str] = {}
        self._owner = {name: name for name in stored.names}
        names = self._header.tensors if self._header is not None else None
        expected = {layout.prefix_of(name): name for name in names or ()}
        for prefix, form in forms_by_prefix.items():
            name = layout.weight_name(prefix) if names is None else expected.get(prefix, "")
            if not name or name in stored.names or not self._is_weight(prefix):
                continue
            self._prefix[name], self._form[name] = prefix, form
            for part in forms.PARTS[form]:
                self._owner[layout.part_name(prefix, part)] = name
        self._dense = self._find_dense()

    @property
    def names(self) -> list[str]:
        return list(self._dense)

    @property
    def metadata(self) -> Mapping[str, object]:
        if self._header is not None:
            return self._header.metadata
        return {k: v for k, v in self.stored.metadata.items() if k != layout.VERSION_KEY}

    def shape(self, name: str) -> tuple[int, ...]:
        return self._dense[name].shape

    def dtype(self, name: str) -> torch.dtype | str:
        return self._dense[name].dtype

    @property
    def header(self) -> layout.DenseHeader | None:
        """The header of the dense file, where the metadata hold it."""
        return self._header

    def form(self, name: str) -> str:
        """The form in which a tensor is stored, or "dense"."""
        return self._form.get(name, "dense")

    def stored_names(self, name: str) -> list[str]:
        """The names under which the file holds a tensor or its parts."""
        if name not in self._form:
            return [name]
        return [layout.part_name(self._prefix[name], p) for p in forms.PARTS[self._form[name]]]

    def belongs_to(self, stored_name: str) -> str:
        """The tensor to which a stored name belongs: itself, or the one of which it is a part."""
        return self._owner.get(stored_name, stored_name)

    def part_shapes(self, name: str) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """The shape and dtype of each part of a tensor that is stored in a sparse form."""
        found = {}
        for part in forms.PARTS[self._form[name]]:
            full = layout.part_name(self._prefix[name], part)
            dtype = self.stored.dtype(full)
            if not isinstance(dtype, torch.dtype):
                raise CheckpointError(self.path, f"{brief(full)} in a dtype of torch", dtype)
            found[part] = (self.stored.shape(full), dtype)
        return found

    def parts(self, name: str) -> dict[str, torch.Tensor]:
        """The parts of a tensor that is stored in a sparse form."""
        prefix = self._prefix[name]
        return {
            part: self.stored.read(layout.part_name(prefix, part))
            for part in forms.PARTS[self._form[name]]
        }

    def read(self, name: str) -> torch.Tensor:
        if name not in self._form:
            return self.stored.read(name)
        with self._naming(name):
            return forms.decode(self.parts(name))

    def write(self, file: BinaryIO, edit: Edit) -> None:
        if self._header is None:
            write_safetensors(self, file, edit)
            return
        file.write(self._header.to_bytes())
        for name in self._header.tensors:
            self._write_tensor(name, file, edit)

    def close(self) -> None:
        self.stored.close()

    def _write_tensor(self, name: str, file: BinaryIO, edit: Edit) -> None:
        edited = edit(name)
        if edited is not None:
            file.write(as_bytes(edited))
        elif name in self._form:
            with self._naming(name):
                for block in forms.decode_blocks(self.parts(name), CHUNK):
                    file.write(as_bytes(block))
        else:
            self.stored.copy_tensor(name, file)

    @contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        """The name of the tensor whose parts do not fit in the error that says so."""
        try:
            yield
        except CheckpointError:
            raise
        except ValueError as error:
            raise CheckpointError(
                self.path, f"the parts of {brief(name)} to fit", str(error)
            ) from error

    def _is_weight(self, prefix: str) -> bool:
        """Whether the values are of a dtype that the forms hold; older formats have others."""
        return self.stored.dtype(layout.part_name(prefix, forms.VALUES)) in forms.DTYPES

    def _find_dense(self) -> dict[str, layout.Dense]:
        found: dict[str, layout.Dense] = {}
        for stored_name in self.stored.names:
            name = self._owner[stored_name]
            if name not in found:
                found[name] = self._dense_of(name)
        if self._header is None:
            return found
        for name, dense in self._header.tensors.items():
            if name not in found:
                raise CheckpointError(self.path, f"the parts of {brief(name)}", "none, or not all")
            if found[name] != dense:
                raise CheckpointError(
                    self.path,
                    f"{brief(name)} as the dense header says, {dense.dtype} {dense.shape}",
                    f"{found[name].dtype} {found[name].shape}",
                )
        stray = found.keys() - self._header.tensors.keys()
        if stray:
            raise CheckpointError(self.path, "tensors of the dense header", brief(min(stray)))
        return dict(self._header.tensors)

    def _dense_of(self, name: str) -> layout.Dense:
        if name not in self._form:
            return layout.Dense(self.stored.dtype(name), self.stored.shape(name))
        prefix = self._prefix[name]
        part = layout.part_name(prefix, forms.SHAPE)
        if self.stored.shape(part) > (64,):
            raise CheckpointError(self.path, f"{brief(part)} of at most 64 sizes", "more")
        try:
            shape = checks.shape_from(self.stored.read(part))
        except ValueError as error:
            raise CheckpointError(self.path, f"{brief(part)} to be a shape", str(error)) from error
        return layout.Dense(self.stored.dtype(layout.part_name(prefix, forms.VALUES)), shape)


def by_tensor(shard_of: Mapping[str, str], shards: Mapping[str, CheckpointFile]) -> dict[str, str]:
    """An index by the names that tensors go by, where it has the names of their parts."""
    found = {}
    for name, file in shard_of.items():
        shard = shards[file]
        found[shard.belongs_to(name) if isinstance(shard, CompressedFile) else name] = file
    return found
