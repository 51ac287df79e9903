"""First and second moments of a layer's inputs: all that calibration keeps of them."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spectral_engine.matrix.arrays import as_tensor


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
