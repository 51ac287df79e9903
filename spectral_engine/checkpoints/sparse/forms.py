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
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from spectral_kernels.product import Packed, pack, unpack

from spectral_engine.checkpoints.sparse import patterns

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
_MORE = 255
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
    shape = tuple(weight.shape)
    dense = Plan("dense", {}, weight.numel())
    if weight.dtype not in DTYPES or weight.ndim < 2 or weight.numel() == 0:
        return dense
    words = weight.contiguous().view(_WORDS[weight.itemsize]).reshape(matrix_shape(shape))
    count = int(torch.count_nonzero(words))
    plans = [dense, _bitmask_plan(shape, count)]
    if count <= DENSEST_GAPS * weight.numel():
        gaps = _gaps(torch.nonzero(words.reshape(-1)).reshape(-1).numpy(), weight.numel())
        length = count + int((gaps // _MORE).sum())
        plans.append(_plan(DELTAS, shape, count, {DELTAS: (length,)}))
    pattern = patterns.pattern_of(words.numpy(), count)
    if pattern is not None:
        plans.append(_positions_plan(shape, pattern))
    return min(plans, key=lambda one: bytes_of(one, weight.dtype))


def plan_of(packed: Packed, shape: tuple[int, ...]) -> Plan:
    """The plan of a weight that is packed already, as a bitmask."""
    return _bitmask_plan(shape, packed.nnz)


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
    packed = pack(weight.contiguous().reshape(matrix_shape(tuple(weight.shape))))
    return parts_of(packed, tuple(weight.shape), chosen)


def parts_of(packed: Packed, shape: tuple[int, ...], chosen: Plan) -> dict[str, torch.Tensor]:
    """The parts of a packed weight of this shape."""
    made: dict[str, torch.Tensor] = {SHAPE: torch.tensor(shape, dtype=torch.int64)}
    if chosen.form == BITMASK:
        made[VALUES], made[BITMASK] = packed.values, packed.bitmask
        made[OFFSETS] = packed.row_offsets.to(offset_dtype(packed.nnz))
    elif chosen.form == DELTAS:
        made[VALUES], made[DELTAS] = packed.values, torch.from_numpy(_deltas(packed))
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


def packed_from(parts: Mapping[str, torch.Tensor]) -> tuple[Packed, tuple[int, ...]]:
    """The packed form of a weight from its parts, and the weight's shape.

    On the CPU unless the parts are those of a bitmask. Whether values, bits and offsets fit is left
    to `spectral_kernels.product`.

    Raises:
        ValueError: parts of the wrong dtype or shape, or that do not belong together.
    """
    shape = shape_from(parts[SHAPE])
    m, n = matrix_shape(shape)
    values = parts[VALUES]
    if values.ndim != 1 or values.dtype not in DTYPES:
        raise ValueError(f"{VALUES}: expected floats (count,); got {_said(values)}")
    if BITMASK in parts:
        bits, offsets = parts[BITMASK], parts[OFFSETS]
        _require(bits, BITMASK, (m, -(-n // 8)), (torch.uint8,))
        _require(offsets, OFFSETS, (m,), (torch.int32, torch.int64))
        return Packed(values, bits, offsets.to(torch.int64), (m, n)), shape
    parts = {name: part.cpu() for name, part in parts.items()}
    values = parts[VALUES]
    if DELTAS in parts:
        _require(parts[DELTAS], DELTAS, (parts[DELTAS].numel(),), (torch.uint8,))
        made = _bits_from_deltas(parts[DELTAS].numpy(), values.numel(), m, n)
    else:
        _require(parts[PATTERN], PATTERN, (2,), (torch.int64,))
        pattern = (int(parts[PATTERN][0]), int(parts[PATTERN][1]))
        patterns.check(pattern, n)
        size = (m, patterns.row_bytes(n, pattern))
        _require(parts[POSITIONS], POSITIONS, size, (torch.uint8,))
        _require(values, VALUES, (m * (n // pattern[1]) * pattern[0],), DTYPES)
        made = patterns.bits_from(parts[POSITIONS].numpy(), pattern, n)
    counts = np.bitwise_count(made).sum(axis=1, dtype=np.int64)
    offsets = torch.from_numpy(np.cumsum(counts) - counts)
    return Packed(values, torch.from_numpy(made), offsets, (m, n)), shape


def decode(parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The weight from its parts, every bit as it was.

    Raises:
        ValueError: as `packed_from` does, and bits that do not fit the values.
    """
    packed, shape = packed_from(parts)
    weight: torch.Tensor = unpack(packed).reshape(shape)
    return weight


def check(packed: Packed) -> None:
    """Refuse values, bits and offsets that do not belong together.

    Raises:
        ValueError: which row is the first that is wrong.
    """
    bits = packed.bitmask.cpu().numpy()
    counts = np.bitwise_count(bits).sum(axis=1, dtype=np.int64)
    ends = np.cumsum(counts)
    wrong = packed.row_offsets.cpu().numpy() != ends - counts
    if packed.shape[1] % 8:
        wrong |= bits[:, -1] >> (packed.shape[1] % 8) != 0
    if ends[-1] != packed.nnz:
        wrong[-1] = True
    if wrong.any():
        raise ValueError(
            f"{BITMASK}: its ones and {OFFSETS} do not agree with {packed.nnz} values; the first "
            f"row where they do not is {int(np.flatnonzero(wrong)[0])}"
        )


def shape_from(part: torch.Tensor) -> tuple[int, ...]:
    """The shape that the part `shape` holds; two sizes or more, none of them 0.

    Raises:
        ValueError: anything else.
    """
    if part.dtype != torch.int64 or part.ndim != 1 or part.numel() < 2 or bool((part < 1).any()):
        said = f"{part.dtype} {part.flatten()[:8].tolist()}"
        raise ValueError(f"{SHAPE}: expected two or more positive sizes in int64; got {said}")
    shape = tuple(int(size) for size in part)
    total = 1
    for size in shape:
        total *= size
    if total >= 2**63:
        raise ValueError(f"{SHAPE}: expected fewer than 2^63 entries; got {shape}")
    return shape


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


def _require(
    part: torch.Tensor, name: str, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...]
) -> None:
    if tuple(part.shape) != shape or part.dtype not in dtypes:
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"{name}: expected {wanted} {shape}; got {_said(part)}")


def _said(part: torch.Tensor) -> str:
    return f"{str(part.dtype).removeprefix('torch.')} {tuple(part.shape)}"


def _with_zeros(packed: Packed, bits: Any, filled: Any) -> torch.Tensor:
    """The values, with a zero for each bit that `filled` has beyond `bits`."""
    wanted = np.unpackbits(filled, bitorder="little").view(bool)
    given = np.unpackbits(bits, bitorder="little").view(bool)[wanted]
    values = torch.zeros(given.size, dtype=packed.values.dtype)
    values[torch.from_numpy(given)] = packed.values
    return values


def _gaps(places: Any, size: int) -> Any:
    """How many zeros lie before each value, since the value before it, and behind the last."""
    return np.diff(places, prepend=-1, append=size) - 1


def _deltas(packed: Packed) -> Any:
    n = packed.shape[1]
    bits = np.unpackbits(packed.bitmask.numpy(), axis=1, count=n, bitorder="little")
    gaps = _gaps(np.flatnonzero(bits), bits.size)
    ends = np.cumsum(gaps // _MORE + 1) - 1
    # The end behind the last value is not written: the shape says it.
    deltas = np.full(int(ends[-1]), _MORE, np.uint8)
    deltas[ends[:-1]] = gaps[:-1] % _MORE
    return deltas


def _bits_from_deltas(deltas: Any, count: int, m: int, n: int) -> Any:
    ends = np.flatnonzero(deltas != _MORE)
    if ends.size != count:
        raise ValueError(f"{DELTAS}: expected the gaps of {count} values; got those of {ends.size}")
    places = np.cumsum(deltas, dtype=np.int64)[ends] + np.arange(count)
    last = int(places[-1]) if count else -1
    behind = deltas.size - (int(ends[-1]) + 1 if count else 0)
    # So that a few bytes cannot claim a matrix that fills the memory.
    if (m * n - 1 - last) // _MORE != behind or last >= m * n:
        raise ValueError(f"{DELTAS}: expected those of {m * n} entries; got others")
    width = -(-n // 8)
    bits = np.zeros(m * width, np.uint8)
    columns = places % n
    at, bit = places // n * width + columns // 8, np.uint8(1) << (columns % 8).astype(np.uint8)
    # Places ascend, so that those of one byte are neighbours: one sum a byte.
    if count:
        first = np.flatnonzero(np.diff(at, prepend=-1))
        bits[at[first]] = np.add.reduceat(bit, first, dtype=np.uint8)
    return bits.reshape(m, width)
