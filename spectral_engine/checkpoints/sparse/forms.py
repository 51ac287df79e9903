"""The forms in which a file holds a sparse matrix, and the packed form that they all come from.

| form      | parts beside `compressed`, the values, and `shape`                            |
|-----------|-------------------------------------------------------------------------------|
| bitmask   | `bitmask`, one bit an entry; `row_offsets`, where each row's values start     |
| positions | `positions`, the columns of N values in each group of M; `pattern`, [N, M]    |
| deltas    | `deltas`, the zeros before each value, a byte each, 255 for "and more to come" |

A form is chosen by counting its bytes; `deltas` only where at most one entry in twenty is not zero.
docs/format.md says what each byte means.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from spectral_kernels.product import (
    PATTERNS,
    Deltas,
    Packed,
    Positions,
    blocks,
    deltas_length,
    pack,
    to_deltas,
    unpack,
)

from spectral_engine.checkpoints.sparse import checks, patterns

VALUES, SHAPE = "compressed", "shape"
#: What tells the form: the part that no other form has.
BITMASK, POSITIONS, DELTAS = "bitmask", "positions", "deltas"
OFFSETS, PATTERN = "row_offsets", "pattern"
#: The parts of each form, in the order in which they are written.
PARTS: dict[str, tuple[str, ...]] = {
    BITMASK: (VALUES, BITMASK, OFFSETS, SHAPE),
    POSITIONS: (VALUES, POSITIONS, PATTERN, SHAPE),
    DELTAS: (VALUES, DELTAS, SHAPE),
}
EVERY_PART = (VALUES, SHAPE, BITMASK, OFFSETS, POSITIONS, PATTERN, DELTAS)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
#: Gaps are tried up to this share of entries that are not zero.
DENSEST_GAPS = 1 / 20
#: A weight as the kernels take it.
Held = Packed | Deltas | Positions
_WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Plan:
    """How a tensor is to be stored.

    Args:
        form: one of PARTS, or "dense".
        sizes: the shape of each part, in the order of PARTS; none if dense.
        count: how many values are stored.
        pattern: (N, M) of `positions`.
    """

    form: str
    sizes: Mapping[str, tuple[int, ...]]
    count: int
    pattern: tuple[int, int] = (0, 0)


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """The matrix (rows, columns) that a weight of this shape is packed as: (shape[0], -1)."""
    return shape[0], math.prod(shape[1:])


def plan(weight: torch.Tensor) -> Plan:
    """The form that stores a weight in the fewest bytes.

    Args:
        weight: on the CPU, of any shape and dtype; one that no form holds is planned dense.
    """
    shape, dtype = tuple(weight.shape), weight.dtype
    if not _can_be_packed(shape, dtype):
        return Plan("dense", {}, weight.numel())
    words = weight.contiguous().view(_WORDS[weight.itemsize]).reshape(matrix_shape(shape)).numpy()
    best = _planned(shape, dtype, int(np.count_nonzero(words)))
    if best.form != "dense" and best.count <= DENSEST_GAPS * weight.numel():
        length = deltas_length(weight.contiguous().reshape(matrix_shape(shape)))
        best = _smaller(best, _plan(DELTAS, shape, best.count, {DELTAS: (length,)}), dtype)
    for pattern in _possible(best, shape, dtype):
        if patterns.holds(words, pattern):
            return _positions_plan(shape, pattern)
    return best


def plan_counted(
    shape: tuple[int, ...], dtype: torch.dtype, count: int, first: torch.Tensor
) -> Plan | None:
    """The plan of a weight of which little is known; None where it takes all of the weight.

    Args:
        shape, dtype: of the weight.
        count: how many of its entries are not +0.
        first: its first rows.
    """
    if not _can_be_packed(shape, dtype):
        return Plan("dense", {}, math.prod(shape))
    best = _planned(shape, dtype, count)
    if best.form != "dense" and count <= DENSEST_GAPS * math.prod(shape):
        return None
    words = first.view(_WORDS[dtype.itemsize]).reshape(-1, matrix_shape(shape)[1]).numpy()
    if any(patterns.holds(words, pattern) for pattern in _possible(best, shape, dtype)):
        return None
    return best


def _can_be_packed(shape: tuple[int, ...], dtype: torch.dtype | str) -> bool:
    return dtype in DTYPES and len(shape) >= 2 and math.prod(shape) > 0


def _planned(shape: tuple[int, ...], dtype: torch.dtype, count: int) -> Plan:
    """Dense or as a bitmask."""
    dense = Plan("dense", {}, math.prod(shape))
    return _smaller(dense, _bitmask_plan(shape, count), dtype)


def _smaller(first: Plan, second: Plan, dtype: torch.dtype) -> Plan:
    return second if bytes_of(second, dtype) < bytes_of(first, dtype) else first


def _possible(best: Plan, shape: tuple[int, ...], dtype: torch.dtype) -> list[tuple[int, int]]:
    """The patterns that would be smaller, if the weight has them."""
    found = []
    for pattern in PATTERNS if matrix_shape(shape)[1] % 8 == 0 else ():
        positions = _positions_plan(shape, pattern)
        few = best.form == "dense" or best.count <= positions.count
        if few and _smaller(best, positions, dtype) is positions:
            found.append(pattern)
    return found


def plan_of(packed: Packed, shape: tuple[int, ...]) -> Plan:
    """The plan of a weight that is packed already, as a bitmask."""
    return _bitmask_plan(shape, packed.nnz)


def form_of(parts: Iterable[str]) -> str:
    """The form that has these parts."""
    return next(form for form in PARTS if form in parts)


def bytes_of(chosen: Plan, dtype: torch.dtype) -> int:
    """How many bytes the parts of a plan take."""
    if chosen.form == "dense":
        return chosen.count * dtype.itemsize
    return sum(
        math.prod(size) * part_dtype(part, dtype, chosen.count).itemsize
        for part, size in chosen.sizes.items()
    )


def part_dtype(part: str, dtype: torch.dtype, count: int) -> torch.dtype:
    """The dtype of a part of a weight of this dtype that stores so many values."""
    if part == VALUES:
        return dtype
    if part in (SHAPE, PATTERN):
        return torch.int64
    if part == OFFSETS:
        return offset_dtype(count)
    return torch.uint8


def offset_dtype(count: int) -> torch.dtype:
    """The narrowest integer that counts so many values."""
    return torch.int32 if count < 2**31 else torch.int64


def encode(weight: torch.Tensor, chosen: Plan) -> dict[str, torch.Tensor]:
    """The parts of a weight, in the form that was planned for it."""
    matrix, shape = weight.contiguous().reshape(matrix_shape(tuple(weight.shape))), weight.shape
    if chosen.form != DELTAS:
        return parts_of(pack(matrix), tuple(shape), chosen)
    held = to_deltas(matrix)
    return {VALUES: held.values, DELTAS: held.deltas, SHAPE: shape_part(shape)}


def shape_part(shape: Iterable[int]) -> torch.Tensor:
    """The part that says the shape of a weight."""
    return torch.tensor(tuple(shape), dtype=torch.int64)


def parts_of(packed: Packed, shape: tuple[int, ...], chosen: Plan) -> dict[str, torch.Tensor]:
    """The parts of a packed weight of this shape, as a bitmask or positions."""
    made: dict[str, torch.Tensor] = {SHAPE: shape_part(shape)}
    if chosen.form == BITMASK:
        made[VALUES], made[BITMASK] = packed.values, packed.bitmask
        made[OFFSETS] = packed.row_offsets.to(offset_dtype(packed.nnz))
    else:
        bits = packed.bitmask.numpy()
        filled = patterns.filled(bits, chosen.pattern)
        positions = patterns.positions_of(filled, chosen.pattern)
        values = packed.values
        if not np.array_equal(filled, bits):
            values = _with_zeros(packed, bits, filled)
        made[VALUES], made[POSITIONS] = values, torch.from_numpy(positions)
        made[PATTERN] = torch.tensor(chosen.pattern, dtype=torch.int64)
    return {part: made[part] for part in PARTS[chosen.form]}


def matrix_from(parts: Mapping[str, torch.Tensor]) -> tuple[Held, tuple[int, ...]]:
    """A weight as the kernels take it, from its parts, and the weight's shape.

    On the CPU unless the parts are those of a bitmask. Whether they fit is left to
    `spectral_kernels.product`.

    Raises:
        ValueError: parts of the wrong dtype or shape, or that do not belong together.
    """
    shape = checks.shape_from(parts[SHAPE])
    m, n = matrix_shape(shape)
    values = parts[VALUES]
    if values.ndim != 1 or values.dtype not in DTYPES:
        raise ValueError(f"{VALUES}: expected floats (count,); got {checks.said(values)}")
    if BITMASK in parts:
        bits, offsets = parts[BITMASK], parts[OFFSETS]
        checks.require(bits, BITMASK, (m, -(-n // 8)), (torch.uint8,))
        checks.require(offsets, OFFSETS, (m,), (torch.int32, torch.int64))
        return Packed(values, bits, offsets, (m, n)), shape
    parts = {name: part.cpu() for name, part in parts.items()}
    values = parts[VALUES]
    if DELTAS in parts:
        checks.require(parts[DELTAS], DELTAS, (parts[DELTAS].numel(),), (torch.uint8,))
        return Deltas(values, parts[DELTAS], (m, n)), shape
    checks.require(parts[PATTERN], PATTERN, (2,), (torch.int64,))
    pattern = (int(parts[PATTERN][0]), int(parts[PATTERN][1]))
    patterns.check(pattern, n)
    checks.require(parts[POSITIONS], POSITIONS, (m, patterns.row_bytes(n, pattern)), (torch.uint8,))
    checks.require(values, VALUES, (m * (n // pattern[1]) * pattern[0],), DTYPES)
    return Positions(values, parts[POSITIONS], pattern, (m, n)), shape


def is_held(parts: Mapping[str, torch.Tensor]) -> bool:
    """Whether products on the CPU read the parts as they are: bits, gaps, and positions that take
    fewer bytes than bits do.
    """
    if POSITIONS not in parts:
        return True
    m, n = matrix_shape(tuple(parts[SHAPE].tolist()))
    return parts[POSITIONS].numel() < m * (n // 8)


def decode(parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The weight from its parts, every bit as it was.

    Raises:
        ValueError: as `matrix_from` does, and bits or gaps that do not fit the values.
    """
    matrix, shape = matrix_from(parts)
    weight: torch.Tensor = unpack(matrix).reshape(shape)
    return weight


def decode_blocks(parts: Mapping[str, torch.Tensor], size: int) -> Iterator[torch.Tensor]:
    """The weight from its parts, some rows (k, columns) after another, about so many bytes each.

    Each block is in the memory of the one before. Raises as `decode`, before the first block.
    """
    matrix, _ = matrix_from(parts)
    yield from blocks(matrix, max(1, size // (matrix.shape[1] * parts[VALUES].itemsize)))


def _plan(
    form: str, shape: tuple[int, ...], count: int, own: Mapping[str, tuple[int, ...]], **more: Any
) -> Plan:
    known = {VALUES: (count,), SHAPE: (len(shape),), PATTERN: (2,), **own}
    return Plan(form, {part: known[part] for part in PARTS[form]}, count, **more)


def _bitmask_plan(shape: tuple[int, ...], count: int) -> Plan:
    m, n = matrix_shape(shape)
    return _plan(BITMASK, shape, count, {BITMASK: (m, -(-n // 8)), OFFSETS: (m,)})


def _positions_plan(shape: tuple[int, ...], pattern: tuple[int, int]) -> Plan:
    m, n = matrix_shape(shape)
    count = m * (n // pattern[1]) * pattern[0]
    own = {POSITIONS: (m, patterns.row_bytes(n, pattern))}
    return _plan(POSITIONS, shape, count, own, pattern=pattern)


def _with_zeros(packed: Packed, bits: Any, filled: Any) -> torch.Tensor:
    """The values, with a zero for each bit that `filled` has beyond `bits`."""
    wanted = np.unpackbits(filled, bitorder="little").view(bool)
    given = np.unpackbits(bits, bitorder="little").view(bool)[wanted]
    values = torch.zeros(given.size, dtype=packed.values.dtype)
    values[torch.from_numpy(given)] = packed.values
    return values
