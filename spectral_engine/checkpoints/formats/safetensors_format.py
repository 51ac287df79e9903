"""The safetensors format, read by offset and rewritten in place of its data only.

    8 bytes, little-endian: N      N bytes of JSON: name -> dtype, shape, [begin, end)      data

The data is covered by the tensors without hole or overlap. A rewrite copies the first 8 + N bytes
as they are, so order, dtypes and metadata are kept by construction, and then streams the data.
The header is checked here, with messages that name the tensor, and again by the `safetensors`
library, so that what this reader accepts other readers accept too.

Source: the format page of https://github.com/huggingface/safetensors.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from .base import (
    MAX_JSON_BYTES,
    CheckpointError,
    CheckpointFile,
    Edit,
    as_bytes,
    brief,
    check_element_count,
    check_name,
    naming,
    open_weights,
    parse_json_object,
)

LENGTH_BYTES = 8
CHUNK = 1 << 22

TORCH_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
}
FORMAT_DTYPES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
#: Bits of the dtypes that torch lacks, or holds only as packed pairs.
PACKED_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}


@dataclass(frozen=True)
class Entry:
    """One tensor of the header; `start` and `end` count bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class SafetensorsFile(CheckpointFile):
    """A .safetensors file; memory holds the header and the one tensor being read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with ExitStack() as on_failure:
            self._file = on_failure.enter_context(open_weights(path))
            size = os.fstat(self._file.fileno()).st_size
            with naming(path):
                self._data_start, header = _read_header(self._file, size, path)
            self._metadata = _metadata(header.pop("__metadata__", None), path)
            self._entries = _entries(header, self._data_start, size, path)
            _check_with_library(path)
            on_failure.pop_all()

    @property
    def names(self) -> list[str]:
        return list(self._entries)

    @property
    def metadata(self) -> Mapping[str, object]:
        return self._metadata

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name].shape

    def dtype(self, name: str) -> torch.dtype | str:
        dtype = self._entries[name].dtype
        return TORCH_DTYPES.get(dtype, dtype)

    def read(self, name: str) -> torch.Tensor:
        entry = self._entries[name]
        tensor = torch.empty(entry.shape, dtype=self._readable(name))
        self._fill(as_bytes(tensor), entry.start)
        return tensor

    def read_rows(self, name: str, rows: Sequence[int]) -> torch.Tensor | None:
        entry = self._entries[name]
        if not entry.shape:
            return None
        tensor = torch.empty((len(rows), *entry.shape[1:]), dtype=self._readable(name))
        memory, size = as_bytes(tensor), tensor[:1].nbytes
        for place, row in enumerate(rows):
            self._fill(memory[place * size : (place + 1) * size], entry.start + row * size)
        return tensor

    def write(self, file: BinaryIO, edit: Edit) -> None:
        self._copy(0, self._data_start, file)
        for name in self._entries:
            self._write_tensor(name, file, edit)

    def close(self) -> None:
        self._file.close()

    def _readable(self, name: str) -> torch.dtype:
        dtype = self.dtype(name)
        if isinstance(dtype, str):
            raise CheckpointError(
                self.path, f"{brief(name)} to have a dtype that torch can hold", dtype
            )
        return dtype

    def _write_tensor(self, name: str, file: BinaryIO, edit: Edit) -> None:
        """One tensor, in a function of its own, to let it go before the next one is read."""
        edited = edit(name)
        if edited is None:
            entry = self._entries[name]
            self._copy(entry.start, entry.end, file)
        else:
            file.write(as_bytes(edited))

    def _copy(self, start: int, end: int, target: BinaryIO) -> None:
        buffer = memoryview(bytearray(min(CHUNK, end - start)))
        for position in range(start, end, CHUNK):
            chunk = buffer[: min(CHUNK, end - position)]
            self._fill(chunk, position)
            target.write(chunk)

    def _fill(self, buffer: memoryview, start: int) -> None:
        with naming(self.path):
            self._file.seek(start)
            count = self._file.readinto(buffer)
        if count < len(buffer):
            raise CheckpointError(self.path, f"{len(buffer)} more bytes", f"{count}")


def write_safetensors(source: CheckpointFile, file: BinaryIO, edit: Edit) -> None:
    """Write any checkpoint as safetensors.

    Wide dtypes come first, so that every tensor is aligned. Tied tensors are edited once and
    stored once a name: safetensors has no notion of sharing, and any loader finds every name.

    Args:
        source: the checkpoint.
        file: empty, open to read and write.
        edit: gives the new value of a tensor, or None to keep it.

    Raises:
        CheckpointError: the format cannot hold an entry, a dtype or a name.
    """
    names = sorted(source.names, key=lambda name: -_torch_dtype(source, name).itemsize)
    if source.non_tensors():
        raise CheckpointError(
            source.path, "only tensors, to write safetensors", brief(source.non_tensors())
        )
    header, spans = _layout(source, names)
    file.write(header)
    for name in names:
        tied = source.tied_to(name)
        if tied is None:
            file.write(_bytes_of(source, name, edit))
            continue
        start = len(header) + spans[tied][0]
        file.write(as_bytes(source.from_tied(name, _read_back(file, start, source, tied))))


def _bytes_of(source: CheckpointFile, name: str, edit: Edit) -> memoryview:
    edited = edit(name)
    return as_bytes(source.read(name) if edited is None else edited)


def _read_back(file: BinaryIO, start: int, source: CheckpointFile, name: str) -> torch.Tensor:
    """A tensor that has just been written at byte `start` of a file."""
    tensor = torch.empty(source.shape(name), dtype=_torch_dtype(source, name))
    file.seek(start)
    memory = as_bytes(tensor)
    for position in range(0, len(memory), CHUNK):
        part = memory[position : position + CHUNK]
        part[:] = file.read(len(part))
    file.seek(0, os.SEEK_END)
    return tensor


def _read_header(file: BinaryIO, size: int, path: Path) -> tuple[int, dict[str, object]]:
    if size < LENGTH_BYTES:
        raise CheckpointError(path, f"at least {LENGTH_BYTES} bytes", f"{size}")
    length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    if length > MAX_JSON_BYTES:
        raise CheckpointError(path, f"a header of at most {MAX_JSON_BYTES} bytes", f"{length}")
    if length > size - LENGTH_BYTES:
        raise CheckpointError(path, f"a header of {length} bytes", f"{size - LENGTH_BYTES} bytes")
    return LENGTH_BYTES + length, parse_json_object(file.read(length), path, "the header")


def _metadata(metadata: object, path: Path) -> dict[str, str]:
    if metadata is None:
        return {}
    if not isinstance(metadata, dict):
        raise CheckpointError(path, "__metadata__ to be a JSON object", brief(metadata))
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise CheckpointError(path, f"metadata {brief(key)} to be a string", brief(value))
    return metadata


def _entries(header: dict[str, object], data_start: int, size: int, path: Path) -> dict[str, Entry]:
    """The tensors in the order of their bytes, which must cover the data exactly."""
    for name in header:
        check_name(name, path)
    entries = {name: _entry(name, item, data_start, path) for name, item in header.items()}
    ordered = dict(sorted(entries.items(), key=lambda pair: (pair[1].start, pair[1].end)))
    position = data_start
    for name, entry in ordered.items():
        if entry.start != position:
            raise CheckpointError(
                path,
                f"{brief(name)} to start at byte {position - data_start} of the data,"
                " without overlap or hole",
                f"{brief(entry.start - data_start)}",
            )
        position = entry.end
    if position != size:
        raise CheckpointError(
            path, f"{brief(position - data_start)} bytes of data", f"{size - data_start}"
        )
    return ordered


def _entry(name: str, item: object, data_start: int, path: Path) -> Entry:
    label = brief(name)
    if not isinstance(item, dict) or item.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(path, f"{label} to give dtype, shape, data_offsets", brief(item))
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    if not isinstance(dtype, str) or (dtype not in TORCH_DTYPES and dtype not in PACKED_BITS):
        raise CheckpointError(path, f"{label} to have a dtype of the format", brief(dtype))
    if not _are_sizes(shape):
        raise CheckpointError(path, f"{label} to have a shape of integers >= 0", brief(shape))
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(
            path, f"{label} to have data_offsets [begin, end], begin <= end", brief(offsets)
        )
    check_element_count(tuple(shape), path, name)
    bits = math.prod(shape) * _bits(dtype)
    if bits != 8 * (offsets[1] - offsets[0]):
        raise CheckpointError(
            path,
            f"{label} to take {bits / 8:g} bytes for {dtype} {brief(shape)}",
            f"{brief(offsets[1] - offsets[0])} bytes in data_offsets",
        )
    return Entry(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _bits(dtype: str) -> int:
    return PACKED_BITS[dtype] if dtype in PACKED_BITS else 8 * TORCH_DTYPES[dtype].itemsize


def _check_with_library(path: Path) -> None:
    try:
        with safe_open(path, framework="numpy"):
            pass
    except SafetensorError as error:
        raise CheckpointError(path, "a safetensors file", brief(str(error))) from error


def _torch_dtype(source: CheckpointFile, name: str) -> torch.dtype:
    dtype = source.dtype(name)
    if not isinstance(dtype, torch.dtype) or dtype not in FORMAT_DTYPES:
        raise CheckpointError(source.path, f"{brief(name)} in a dtype of safetensors", f"{dtype}")
    if name == "__metadata__" or any("\ud800" <= letter <= "\udfff" for letter in name):
        raise CheckpointError(source.path, "tensor names that safetensors allows", brief(name))
    return dtype


def _layout(source: CheckpointFile, names: list[str]) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The header with its length, and each tensor's bytes [start, end) counted from its end."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    spans = {}
    position = 0
    for name in names:
        shape, dtype = source.shape(name), _torch_dtype(source, name)
        end = position + math.prod(shape) * dtype.itemsize
        spans[name] = (position, end)
        offsets = [position, end]
        header[name] = {"dtype": FORMAT_DTYPES[dtype], "shape": shape, "data_offsets": offsets}
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text, spans
