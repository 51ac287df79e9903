"""First and second moments of a layer's inputs: all that calibration keeps of them."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from spectral_kernels.spectra import full_precision

from spectral_engine.matrix.arrays import as_tensor

#: Columns of H that one product makes; those right of its first only, since H is symmetric.
PANEL = 256


@dataclass(frozen=True)
class Moments:
    """The first and second moments of a layer's inputs x, over the samples seen.

    second: E[x x^T], (n, n), or (b, n, n) for a stack of matrices.
    mean: E[x], (n,) or (b, n). count: the number of samples.
    cross, dense_mean: E[x' x^T] and E[x'], where x' is the same input in the dense model, whose
        outputs W x' a refit is to meet from the inputs x; None where x' is x.
    centred: whether `second` and `cross` are covariances.
    """

    second: torch.Tensor
    mean: torch.Tensor
    count: int
    cross: torch.Tensor | None = None
    dense_mean: torch.Tensor | None = None
    centred: bool = False

    @classmethod
    def of(cls, inputs: Any, features: int) -> "Moments":
        """The moments of samples (..., features), summed in float64.

        Raises:
            TypeError, ValueError: no array of finite real samples of this many features.
        """
        samples = as_tensor(inputs, "inputs")
        if samples.ndim == 0 or samples.shape[-1] != features:
            raise ValueError(
                f"inputs: expected shape (..., {features}); got {tuple(samples.shape)}"
            )
        rows = samples.reshape(-1, features).double()
        if rows.shape[0] == 0 or not bool(torch.isfinite(rows).all()):
            raise ValueError("inputs: expected at least one sample, all finite")
        second, mean = rows.mT @ rows / rows.shape[0], rows.mean(0)
        if not bool((second.diagonal().sqrt() <= torch.finfo(torch.float32).max).all()):
            raise ValueError("inputs: expected a root mean square that fits float32; got more")
        return cls(second, mean, rows.shape[0])

    @cached_property
    def scale(self) -> torch.Tensor:
        """Root mean square of each input feature, (n,) or (b, n)."""
        return self.second.diagonal(dim1=-2, dim2=-1).clamp(min=0.0).sqrt()

    def host_scale(self) -> NDArray[np.float32]:
        """`scale`, as the kernels take a column vector."""
        scale: NDArray[np.float32] = self.scale.float().cpu().numpy()
        return scale

    def deviations(self) -> "Moments":
        """The covariances. They weigh the outputs' error where a bias corrects its mean."""
        if self.centred:
            return self
        second, cross = self.second.clone(), None if self.cross is None else self.cross.clone()
        return replace(self, second=second, cross=cross).centre()

    def centre(self) -> "Moments":
        """As `deviations`, overwriting the second moments."""
        for moments, left in ((self.second, self.mean), (self.cross, self.dense_mean)):
            if moments is not None and left is not None:
                column, row = (x.to(moments.dtype) for x in (left, self.mean))
                moments.view(-1, *moments.shape[-2:]).baddbmm_(
                    column.reshape(-1, column.shape[-1], 1),
                    row.reshape(-1, 1, row.shape[-1]),
                    alpha=-1,
                )
        return replace(self, centred=True)

    def to(self, device: torch.device) -> "Moments":
        """The moments on a device."""
        tensors = (self.second, self.mean, self.cross, self.dense_mean)
        second, mean, cross, dense = (None if x is None else x.to(device) for x in tensors)
        if second is None or mean is None:
            raise ValueError("moments: expected second moments and a mean; got None")
        return Moments(second, mean, self.count, cross, dense, self.centred)

    def __getitem__(self, index: int) -> "Moments":
        """Those of one matrix of a batch."""
        cross = None if self.cross is None else self.cross[index]
        dense = None if self.dense_mean is None else self.dense_mean[index]
        second, mean = self.second[index], self.mean[index]
        return Moments(second, mean, self.count, cross, dense, self.centred)


class Accumulator:
    """Sums of x x^T and x over samples that come in any number of parts.

    Products are taken in float32 (float64 for float64 inputs) and added to one matrix in place.
    After B parts the error of an entry is below B 6e-8 of the largest, in practice about
    sqrt(B) 6e-8. Only the upper block triangle is summed. Means are summed in float64.
    """

    def __init__(
        self, features: int, batch: int | None, dtype: torch.dtype, device: torch.device
    ) -> None:
        dtype = torch.float64 if dtype == torch.float64 else torch.float32
        self._shape = (features,) if batch is None else (batch, features)
        self._second = torch.zeros((*self._shape, features), dtype=dtype, device=device)
        self._cross: torch.Tensor | None = None
        self._sum = torch.zeros(self._shape, dtype=torch.float64, device=device)
        self._dense_sum = torch.zeros_like(self._sum)
        self._weight = 0.0
        self.count = 0

    def add(
        self,
        samples: torch.Tensor,
        dense: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
    ) -> None:
        """Add samples.

        Args:
            samples: (N, n), or (b, N, n).
            dense: the same samples in the dense model.
            weights: (N,), how much each counts; None for 1.
        """
        x = samples.to(self._second)
        w = None if weights is None else weights.to(self._second)[:, None]
        weighed = x if w is None else x * w
        with full_precision(torch):
            for start in range(0, self._shape[-1], PANEL):
                panel = self._second[..., start : start + PANEL, start:]
                _add_product(panel, x[..., start : start + PANEL], weighed[..., start:])
            self._sum += weighed.sum(-2, dtype=torch.float64)
            self.count += x.shape[-2]
            self._weight += x.shape[-2] if weights is None else float(weights.double().sum())
            if dense is not None:
                if self._cross is None:
                    self._cross = torch.zeros_like(self._second)
                y = dense.to(self._second)
                _add_product(self._cross, y, weighed)
                self._dense_sum += (y if w is None else y * w).sum(-2, dtype=torch.float64)

    def moments(self) -> Moments | None:
        """The moments, or None where there were no samples. It consumes the sums: call it once."""
        if self.count == 0:
            return None
        for start in range(0, self._shape[-1], PANEL):
            stop = start + PANEL
            panel = self._second[..., start:stop, stop:]
            self._second[..., stop:, start:stop] = panel.mT
        total = self._weight
        dense = None if self._cross is None else self._dense_sum.div_(total)
        cross = None if self._cross is None else self._cross.div_(total)
        return Moments(self._second.div_(total), self._sum.div_(total), self.count, cross, dense)


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """total += left^T right, for one pair or a batch."""
    if total.ndim == 2:
        total.addmm_(left.mT, right)
    else:
        total.baddbmm_(left.mT, right)


def moment_bytes(features: int, batch: int | None, dtype: torch.dtype) -> int:
    """Bytes of the second moments of a layer."""
    return (8 if dtype == torch.float64 else 4) * math.prod((batch or 1, features, features))
