"""The dense matrix from any of its forms: whole, or some rows at a time."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from spectral_kernels.product import arrays, deltas, positions
from spectral_kernels.product.deltas import Deltas
from spectral_kernels.product.packed import Packed, check
from spectral_kernels.product.positions import Positions

Held = Packed | Deltas | Positions


def unpack(packed: Held) -> Any:
    """The matrix (m, n) that was packed, every bit as it was.

    Args:
        packed: as `pack` returns it, `Deltas`, or `Positions`.

    Returns:
        (m, n), of the kind, device and dtype of its values.

    Raises:
        TypeError: an array of the wrong kind or dtype.
        ValueError: arrays that do not belong together.
    """
    if arrays.on_gpu(packed.values) and isinstance(packed, Packed):
        check(packed)
        from spectral_kernels.product.gpu import packing as gpu  # noqa: PLC0415 (needs Triton)

        return gpu.unpack(packed.values, packed.bitmask, packed.row_offsets, packed.shape)
    [dense] = blocks(packed, packed.shape[0])
    return dense


def blocks(packed: Held, rows: int) -> Iterator[Any]:
    """The matrix some rows after another, in one memory that each block overwrites.

    Args:
        packed: as for `unpack`, on the CPU.
        rows: of a block; the last one may have fewer.

    Yields:
        (rows, n), of the kind and dtype of the values.

    Raises: as `unpack`, before the first block.

    >>> import numpy as np
    >>> from spectral_kernels.product.packed import pack
    >>> S = np.array([[0.0, 1.5], [2.0, 0.0], [0.0, 0.0]], np.float32)
    >>> [block.tolist() for block in blocks(pack(S), 2)]
    [[[0.0, 1.5], [2.0, 0.0]], [[0.0, 0.0]]]
    """
    from spectral_kernels.product.cpu.forms import far, grouped  # noqa: PLC0415 (starts the compiler)

    m, n = packed.shape
    walker = None
    if isinstance(packed, Deltas):
        deltas.check_arrays(packed)
        walker = far.Runner(packed)
    elif isinstance(packed, Positions):
        positions.check_arrays(packed)
    else:
        check(packed)
    room = arrays.empty_like(packed.values, (min(rows, m), n), packed.dtype)
    for low in range(0, m, rows):
        high = min(low + rows, m)
        out = room[: high - low]
        if walker is not None:
            walker.rows_into(np.arange(low, high), out)
        elif isinstance(packed, Positions):
            _scatter(grouped.packed_of(packed, low, high), 0, high - low, out)
        else:
            _scatter(packed, low, high, out)
        yield out


def _scatter(packed: Any, low: int, high: int, out: Any) -> None:
    from spectral_kernels.product.cpu import packing  # noqa: PLC0415 (starts the compiler)

    bits = arrays.words_of(packed.bitmask[low:high])
    offsets = arrays.signed_of(packed.row_offsets[low:high])
    values, words = arrays.words_of(packed.values), arrays.words_of(out)
    packing.scatter(values, bits, offsets, words, packed.shape[1])
