"""Whether the parts of a weight are what they should be, and belong together."""

import numpy as np
import torch
from spectral_kernels.product import Packed


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
            f"bitmask: its ones and row_offsets do not agree with {packed.nnz} values; the first "
            f"row where they do not is {int(np.flatnonzero(wrong)[0])}"
        )


def shape_from(part: torch.Tensor) -> tuple[int, ...]:
    """The shape that the part `shape` holds; two sizes or more, none of them 0.

    Raises:
        ValueError: anything else.
    """
    if part.dtype != torch.int64 or part.ndim != 1 or part.numel() < 2 or bool((part < 1).any()):
        got = f"{part.dtype} {part.flatten()[:8].tolist()}"
        raise ValueError(f"shape: expected two or more positive sizes in int64; got {got}")
    shape = tuple(int(size) for size in part)
    total = 1
    for size in shape:
        total *= size
    if total >= 2**63:
        raise ValueError(f"shape: expected fewer than 2^63 entries; got {shape}")
    return shape


def require(
    part: torch.Tensor, name: str, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...]
) -> None:
    """ValueError for a part of another shape, or of none of these dtypes."""
    if tuple(part.shape) != shape or part.dtype not in dtypes:
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"{name}: expected {wanted} {shape}; got {said(part)}")


def said(part: torch.Tensor) -> str:
    """The dtype and shape of a part, for messages."""
    return f"{str(part.dtype).removeprefix('torch.')} {tuple(part.shape)}"
