"""How a compressed file names its parts, and what its metadata says.

The parts of "fc.weight" are "fc.compressed", "fc.bitmask" and so on; those of "rnn.weight_ih_l0"
are "rnn.weight_ih_l0.compressed" and so on. The metadata hold the version of the format and the
header of the dense file, so that decompressing gives its very bytes. A file without these metadata,
as a module's state dict saved by other means, is told by its names, and all its parts are those of
a ".weight".
"""

import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from spectral_engine.checkpoints.formats.base import CheckpointError, brief, parse_json_object
from spectral_engine.checkpoints.formats.safetensors_format import FORMAT_DTYPES, TORCH_DTYPES
from spectral_engine.checkpoints.sparse.forms import EVERY_PART, PARTS, SHAPE

VERSION = "1"
#: Keys of the metadata.
VERSION_KEY = "spectral_engine.version"
HEADER_KEY = "spectral_engine.dense_header"
_WEIGHT = "weight"


def prefix_of(name: str) -> str:
    """What the names of a tensor's parts begin with: its module's name, where it is a "weight"."""
    return "" if name == _WEIGHT else name.removesuffix("." + _WEIGHT)


def part_name(prefix: str, part: str) -> str:
    """The name of a part in the file."""
    return f"{prefix}.{part}" if prefix else part


def weight_name(prefix: str) -> str:
    """The tensor whose parts begin with a prefix, where nothing else is known."""
    return part_name(prefix, _WEIGHT)


def forms_in(names: Collection[str]) -> dict[str, str]:
    """Prefix to form, for every set of parts that is complete."""
    found = {}
    known = set(names)
    for name in names:
        prefix, dot, part = name.rpartition(".")
        if part in PARTS and (dot or prefix == ""):
            needed = [part_name(prefix, one) for one in PARTS[part]]
            if known.issuperset(needed):
                found[prefix] = part
    return found


def is_sparse(metadata: Mapping[str, object], names: Collection[str]) -> bool:
    """Whether a safetensors file holds sparse matrices, as its metadata or its names say."""
    if VERSION_KEY in metadata:
        return True
    return any(name.endswith(SHAPE) for name in names) and bool(forms_in(names))


def check_version(metadata: Mapping[str, object], path: Path) -> None:
    """Refuse a version that this reader does not know."""
    version = metadata.get(VERSION_KEY, VERSION)
    if version != VERSION:
        raise CheckpointError(
            path, f"version {VERSION} of the compressed format", f"version {brief(version)}"
        )


@dataclass(frozen=True)
class Dense:
    """One tensor of a dense header."""

    dtype: torch.dtype | str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class DenseHeader:
    """The header of the dense file: its JSON as it was, and its tensors in order of the data."""

    text: str
    tensors: Mapping[str, Dense]
    metadata: Mapping[str, object]

    def to_bytes(self) -> bytes:
        """The first bytes of the dense file."""
        text = self.text.encode()
        return len(text).to_bytes(8, "little") + text


def parse_dense_header(text: str, path: Path) -> DenseHeader:
    """The dense header out of the metadata of a file that is not to be trusted."""
    what = "the dense header"
    try:
        header = parse_json_object(text.encode("utf-8"), path, what)
    except UnicodeEncodeError as error:
        raise CheckpointError(path, f"{what} in valid Unicode", brief(text)) from error
    metadata = header.pop("__metadata__", {})
    placed: list[tuple[int, int, str, Dense]] = []
    for name, item in header.items():
        ok = isinstance(item, dict) and item.keys() == {"dtype", "shape", "data_offsets"}
        if not isinstance(item, dict) or not ok or not _sizes(item["shape"]):
            raise CheckpointError(
                path, f"{what} to give dtype and shape of {brief(name)}", brief(item)
            )
        dtype, shape, span = item["dtype"], item["shape"], item["data_offsets"]
        if not isinstance(dtype, str) or not _sizes(span) or len(span) != 2:
            raise CheckpointError(path, f"{what} to give the bytes of {brief(name)}", brief(item))
        placed.append((span[0], span[1], name, Dense(TORCH_DTYPES.get(dtype, dtype), tuple(shape))))
    position, tensors = 0, {}
    for start, end, name, dense in sorted(placed, key=lambda one: one[:2]):
        known = isinstance(dense.dtype, torch.dtype)
        size = math.prod(dense.shape) * dense.dtype.itemsize if known else end - start  # type: ignore[union-attr]
        if start != position or end - start != size:
            raise CheckpointError(
                path, f"{what} to place {brief(name)} at {position}, {size} bytes", f"{start, end}"
            )
        position, tensors[name] = end, dense
    return DenseHeader(text, tensors, metadata if isinstance(metadata, dict) else {})


def header_text(
    tensors: Iterable[tuple[str, str, tuple[int, ...], int]], metadata: Mapping[str, str]
) -> str:
    """The JSON of a safetensors header, padded to a multiple of eight bytes.

    Args:
        tensors: name, the format's name of the dtype, shape and bytes, in the order of the data.
        metadata: left out if there is none.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, dtype, shape, size in tensors:
        header[name] = {
            "dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size],
        }  # fmt: skip
        position += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
    return text + " " * (-len(text.encode()) % 8)


def format_dtype(dtype: torch.dtype) -> str:
    """The name of a dtype in a safetensors header."""
    return FORMAT_DTYPES[dtype]


def part_names(prefix: str) -> list[str]:
    """Every name that a part of a tensor may have."""
    return [part_name(prefix, part) for part in EVERY_PART]


def _sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)
