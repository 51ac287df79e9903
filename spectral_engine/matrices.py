"""A weight of any array library as the torch matrix that its spectrum is taken of."""

import math
from typing import Any

import numpy as np
import torch
from spectral_kernels.backend import module_of

_CHUNK = 1 << 22


def as_tensor(array: Any) -> torch.Tensor:
    """The array as a detached torch tensor, without a copy."""
    if isinstance(array, torch.Tensor):
        return array.detach()
    if isinstance(array, np.ndarray):
        if not array.flags.writeable or any(stride < 0 for stride in array.strides):
            array = array.copy()  # torch has no read-only tensors and no negative strides
        return torch.from_numpy(array)
    if module_of(array) == "cupy":
        tensor: torch.Tensor = torch.utils.dlpack.from_dlpack(array)
        return tensor
    raise TypeError(
        "weight: expected a NumPy array, a torch tensor or a CuPy array; "
        f"got {type(array).__module__}.{type(array).__qualname__}"
    )


def as_matrix(array: Any) -> torch.Tensor:
    """The (shape[0], -1) view of an array, as a torch tensor."""
    tensor = as_tensor(array)
    return tensor.reshape(tensor.shape[0], -1)


def frobenius_norm(matrix: torch.Tensor, other: torch.Tensor | None = None) -> float:
    """||A||_F, or ||A - S||_F, summed in float64 over runs of rows: no full-size copy."""
    step = max(1, _CHUNK // matrix.shape[1])
    total = 0.0
    for first in range(0, matrix.shape[0], step):
        rows = matrix[first : first + step].double()
        if other is not None:
            rows = rows - other[first : first + step].double()
        total += float(rows.square().sum())
    return math.sqrt(total)
