"""Tensors that belong to a quantised weight: its scales, zero points, codebooks, and so on.

A quantised weight is stored in a dtype of few bits, and what turns it into numbers lies beside it,
often as a matrix in a float dtype. Changed, it ruins the layer though the weight is left alone. The
names are those of DeepSeek and compressed-tensors (`weight_scale`, `weight_scale_inv`), GPTQ and
AWQ (`scales`, `qzeros`, `g_idx`), bitsandbytes (`absmax`, `quant_map`, `quant_state`, `SCB`), HQQ
(`scale`, `zero`), MXFP4 (`*_blocks`, `*_scales`), AQLM and QuIP# (`codebooks`). Names that this
list lacks are covered by where a tensor lies: in the module of a quantised weight and much smaller.
"""

import math
import re
from collections.abc import Mapping

import torch

from .formats.base import Checkpoint

#: The dtypes that hold a quantised weight, as numbers of few bits or packed into integers.
_FLOATS = ("F4", "F6_E2M3", "F6_E3M2")
_PACKED = {torch.int8, torch.uint8, torch.int16, torch.int32, torch.uint16, torch.uint32}
#: Names of integers that are no weight: masks, positions and counters of a layer.
_NO_WEIGHT = re.compile(
    r"mask|position|index|indices|ids$|tracked$|(^|_)(g_idx|perm|invperm|shape|zeros?|qzeros)$"
    r"|zero_point$|(^|_)bias$|absmax$|quant_(map|state)|scales?$|length|steps?$|count|format$"
)
#: What the last part of a companion's name is, after the weight's own name or in its place.
_COMPANION = re.compile(
    r"((^|_)(scale|scales|scaling|scale_inv|scales_inv|scale_\d|scale_max|global_scale|zero|zeros"
    r"|zero_point|qzeros|g_idx|perm|invperm|q_perm|q_invperm|q_groups|absmax|quant_map|code"
    r"|codebook|codebooks|centroids|SCB|SU|SV|amax|shape|meta|offset)$)|quant_state"
)
#: A companion in one's module has at most one in this many of the weight's elements.
_SHARE = 4


def quantised_companions(
    tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype | str]],
) -> dict[str, str]:
    """Find the tensors that belong to a quantised weight, and must stay as they are.

    Args:
        tensors: for each name its shape, and its dtype or the format's name of one.

    Returns:
        The names of the companions, in the order given, each with its reason. The quantised
        weights themselves are not among them: their dtype tells that they are not pruned.

    >>> quantised_companions({
    ...     "q.weight": ((256, 512), torch.float8_e4m3fn),
    ...     "q.weight_scale_inv": ((2, 4), torch.float32),
    ...     "head.weight": ((64, 512), torch.float32),
    ... })
    {'q.weight_scale_inv': "belongs to the quantised weight 'q.weight' (float8_e4m3fn)"}
    """
    weights: dict[str, list[str]] = {}
    for name, (_, dtype) in tensors.items():
        if is_quantised(name, dtype):
            weights.setdefault(_module(name), []).append(name)
    found = {}
    for name, (shape, dtype) in tensors.items():
        owner = _owner(name, shape, dtype, weights, tensors)
        if owner is not None:
            kind = str(tensors[owner][1]).removeprefix("torch.")
            found[name] = f"belongs to the quantised weight {owner!r} ({kind})"
    return found


def companions_of(checkpoint: Checkpoint) -> dict[str, str]:
    """Find the companions of the quantised weights of an open checkpoint.

    Args:
        checkpoint: open; no tensor is read.

    Returns: as `quantised_companions`.
    """
    return quantised_companions(
        {name: (checkpoint.shape(name), checkpoint.dtype(name)) for name in checkpoint.names}
    )


def is_quantised(name: str, dtype: torch.dtype | str) -> bool:
    """Whether a tensor of this name and dtype holds a quantised weight."""
    last = name.rpartition(".")[2]
    if isinstance(dtype, str):
        few_bits = dtype in _FLOATS
    else:
        few_bits = dtype in _PACKED or (dtype.is_floating_point and dtype.itemsize == 1)
    return few_bits and not _NO_WEIGHT.search(last) and not _COMPANION.search(last)


def _owner(
    name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype | str,
    weights: Mapping[str, list[str]],
    tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype | str]],
) -> str | None:
    """The quantised weight that a tensor belongs to, by its name or by its place."""
    module, last = _module(name), name.rpartition(".")[2]
    for prefix in _prefixes(name):  # As in "q.weight.absmax".
        if prefix in weights.get(_module(prefix), ()):
            return prefix
    beside = [weight for weight in weights.get(module, ()) if weight != name]
    if not beside or is_quantised(name, dtype):
        return None
    nearest = max(beside, key=lambda weight: _common(weight, name))
    if _COMPANION.search(last):
        return nearest
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        return None
    size = math.prod(tensors[nearest][0])
    return nearest if len(shape) > 1 and _SHARE * math.prod(shape) <= size else None


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(len(parts) - 1, 0, -1)]


def _common(one: str, other: str) -> int:
    """How many letters two names begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))
