"""A weight file written in compressed form, one tensor in memory at a time.

Every tensor is read twice: to count what it takes, since a safetensors file begins with where
everything lies, and to write it. Wide dtypes come first, so that every part is aligned.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import torch
from spectral_kernels.product import pack

from spectral_engine.checkpoints.formats.base import (
    CheckpointError,
    CheckpointFile,
    as_bytes,
    brief,
)
from spectral_engine.checkpoints.formats.safetensors_format import CHUNK, FORMAT_DTYPES
from spectral_engine.checkpoints.sparse import forms, layout
from spectral_engine.checkpoints.sparse.reader import CompressedFile, Stored
from spectral_engine.compression.report import CompressedWeight

#: A weight without a pattern is told by its first rows.
_FIRST_ROWS = 8


@dataclass(frozen=True)
class _Part:
    """A tensor of the file that is written: whose part it is, and how many bytes it takes."""

    name: str
    of: str
    part: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    width: float


@dataclass(frozen=True)
class Written:
    """What a file holds once it is written.

    names: of what is stored, with the tensor that each belongs to.
    rows: the weights in a sparse form.
    dense: the weights asked for that stay dense, since no form is smaller.
    dense_bytes, bytes: of all tensors, headers aside.
    """

    names: dict[str, str]
    rows: list[CompressedWeight]
    dense: list[str]
    dense_bytes: int
    bytes: int


def write_compressed(
    source: CheckpointFile,
    file: BinaryIO,
    wanted: Callable[[str], bool],
    done: Callable[[CompressedWeight], None] = lambda row: None,
    *,
    keep_negative_zero: bool = True,
) -> Written:
    """Write a weight file to an empty file, each wanted tensor in its smallest form.

    Args:
        source: opened; must not change meanwhile.
        file: open to read and write.
        wanted: by name; other tensors stay as they are.
        done: called with the row of each weight that is written in a sparse form.
        keep_negative_zero: False makes -0 in wanted tensors +0, which is not stored.

    Raises:
        CheckpointError: a tensor of a dtype that safetensors lacks, entries that are no tensors.
    """
    if source.non_tensors():
        raise CheckpointError(
            source.path, "only tensors, to write safetensors", brief(source.non_tensors())
        )
    plans = {
        name: _planned(source, name, keep_negative_zero) for name in source.names if wanted(name)
    }
    _keep_apart(source.names, plans)
    parts = sorted(
        (part for name in source.names for part in _parts(source, name, plans.get(name))),
        key=lambda part: -part.width,
    )
    text = layout.header_text(
        ((part.name, part.dtype, part.shape, part.size) for part in parts), _metadata(source)
    )
    file.write(len(text.encode()).to_bytes(8, "little") + text.encode())
    places, position = {}, file.tell()
    for part in parts:
        places[part.of, part.part] = (position, part)
        position += part.size
    rows = []
    for name in source.names:
        row = _write(source, name, plans.get(name), places, file, keep_negative_zero)
        if row is not None:
            rows.append(row)
            done(row)
    file.seek(position)
    return Written(
        {part.name: part.of for part in parts},
        rows,
        [name for name, plan in plans.items() if plan.form == "dense"],
        sum(_dense_bytes(source, name) for name in source.names),
        sum(part.size for part in parts),
    )


def _planned(source: CheckpointFile, name: str, keep_negative_zero: bool) -> forms.Plan:
    """The plan of a tensor, in a function of its own, to let it go before the next one is read."""
    dtype, shape = source.dtype(name), source.shape(name)
    if not isinstance(dtype, torch.dtype):
        return forms.Plan("dense", {}, 0)
    if isinstance(source, Stored) and keep_negative_zero and dtype in forms.DTYPES and shape:
        count = source.count_words(name, dtype.itemsize)
        plan = forms.plan_counted(shape, dtype, count, source.read_first(name, _FIRST_ROWS))
        if plan is not None:
            return plan
    return forms.plan(_read(source, name, keep_negative_zero))


def _read(source: CheckpointFile, name: str, keep_negative_zero: bool) -> torch.Tensor:
    weight = source.read(name)
    return weight if keep_negative_zero or weight.dtype not in forms.DTYPES else weight.add_(0.0)


def _keep_apart(names: Iterable[str], plans: dict[str, forms.Plan]) -> None:
    """Leave a tensor dense where one of its parts has the name of another tensor or part."""
    taken = set(names)
    for name, plan in plans.items():
        parts = layout.part_names(layout.prefix_of(name))
        if plan.form != "dense" and not taken.isdisjoint(parts):
            plans[name] = forms.Plan("dense", {}, 0)
        elif plan.form != "dense":
            taken.update(parts)


def _parts(source: CheckpointFile, name: str, plan: forms.Plan | None) -> list[_Part]:
    dtype = source.dtype(name)
    if plan is None or plan.form == "dense" or not isinstance(dtype, torch.dtype):
        size = _dense_bytes(source, name)
        width = dtype.itemsize if isinstance(dtype, torch.dtype) else 0.5
        return [_Part(name, name, "", _format_dtype(source, name), source.shape(name), size, width)]
    prefix, made = layout.prefix_of(name), []
    for part, shape in plan.sizes.items():
        own = forms.part_dtype(part, dtype, plan.count)
        size = math.prod(shape) * own.itemsize
        full = layout.part_name(prefix, part)
        made.append(_Part(full, name, part, layout.format_dtype(own), shape, size, own.itemsize))
    return made


def _write(
    source: CheckpointFile,
    name: str,
    plan: forms.Plan | None,
    places: dict[tuple[str, str], tuple[int, _Part]],
    file: BinaryIO,
    keep_negative_zero: bool,
) -> CompressedWeight | None:
    if plan is None or plan.form == "dense":
        file.seek(places[name, ""][0])
        if isinstance(source, Stored):
            source.copy_tensor(name, file)
        else:
            file.write(as_bytes(source.read(name)))
        return None
    shape, dtype = source.shape(name), source.dtype(name)
    if isinstance(source, Stored) and plan.form == forms.BITMASK:
        made = _encoded_blocks(source, name, plan, keep_negative_zero)
    else:
        made = _encoded(source, name, plan, keep_negative_zero)
    sizes = {part: places[name, part][1].size for part in plan.sizes}
    written = dict.fromkeys(sizes, 0)
    for part, tensor in made:
        file.seek(places[name, part][0] + written[part])
        written[part] += tensor.nbytes
        if written[part] > sizes[part]:
            break
        file.write(as_bytes(tensor))
    if written != sizes:
        raise CheckpointError(source.path, f"{brief(name)} as it was a moment ago", "another")
    return CompressedWeight(
        name, shape, str(dtype).removeprefix("torch."), plan.form,
        1.0 - plan.count / math.prod(shape), _dense_bytes(source, name), sum(sizes.values()),
    )  # fmt: skip


def _encoded(
    source: CheckpointFile, name: str, plan: forms.Plan, keep_negative_zero: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    """The parts of a weight, which is in memory whole."""
    yield from forms.encode(_read(source, name, keep_negative_zero), plan).items()


def _encoded_blocks(
    source: Stored, name: str, plan: forms.Plan, keep_negative_zero: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    """The parts of a bitmask a few rows after another, so that what is read stays in a cache."""
    before, offset_dtype = 0, forms.offset_dtype(plan.count)
    for block in source.read_blocks(name, CHUNK):
        packed = pack(block if keep_negative_zero else block.add_(0.0))
        yield forms.VALUES, packed.values
        yield forms.BITMASK, packed.bitmask
        yield forms.OFFSETS, (packed.row_offsets.long() + before).to(offset_dtype)
        before += packed.nnz
    yield forms.SHAPE, forms.shape_part(source.shape(name))


def _dense_bytes(source: CheckpointFile, name: str) -> int:
    dtype = source.dtype(name)
    if isinstance(dtype, torch.dtype):
        return math.prod(source.shape(name)) * dtype.itemsize
    stored = source.stored if isinstance(source, CompressedFile) else source
    return stored.bytes_of(name) if isinstance(stored, Stored) else 0


def _format_dtype(source: CheckpointFile, name: str) -> str:
    dtype = source.dtype(name)
    if isinstance(dtype, str):
        return dtype
    if dtype not in FORMAT_DTYPES:
        raise CheckpointError(source.path, f"{brief(name)} in a dtype of safetensors", f"{dtype}")
    return layout.format_dtype(dtype)


def _metadata(source: CheckpointFile) -> dict[str, str]:
    """The metadata of the dense file, the version, and the dense file's header."""
    if isinstance(source, CompressedFile) and source.header is not None:
        text = source.header.text
    elif isinstance(source, Stored):
        text = source.header_text()
    else:
        names = sorted(source.names, key=lambda name: -getattr(source.dtype(name), "itemsize", 0))
        text = layout.header_text(
            (
                (name, _format_dtype(source, name), source.shape(name), _dense_bytes(source, name))
                for name in names
            ),
            {"format": "pt"},
        )
    own = {layout.VERSION_KEY: layout.VERSION, layout.HEADER_KEY: text}
    kept = layout.parse_dense_header(text, source.path).metadata
    return {**{key: str(value) for key, value in kept.items()}, **own}
