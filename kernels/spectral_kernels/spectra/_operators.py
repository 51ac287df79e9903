"""A matrix as its two products, x -> A x and y -> A^T y, brought to unit scale."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from spectral_kernels.spectra._arrays import Array, Namespace, unit_scales


@dataclass(frozen=True)
class Operator:
    """The products of A (..., m, n), each matrix scaled by its own power of two.

    forward: (..., n, b) -> (..., m, b) and adjoint: (..., m, b) -> (..., n, b), unscaled
    first, second: (..., 1, 1); their product brings the largest entry into [1/2, 1)
    like: an array of the dtype and on the device in which the products are done
    noise: (..., 1), the norm at unit scale that rounding is relative to; None for A's own
    """

    xp: Namespace
    shape: tuple[int, ...]
    forward: Callable[[Array], Array]
    adjoint: Callable[[Array], Array]
    first: Array
    second: Array
    like: Array
    noise: Array | None = None

    @property
    def T(self) -> "Operator":
        *batch, m, n = self.shape
        return replace(self, shape=(*batch, n, m), forward=self.adjoint, adjoint=self.forward)

    def tall(self) -> "Operator":
        """This operator or its transpose, whichever has m >= n."""
        return self if self.shape[-2] >= self.shape[-1] else self.T

    def __matmul__(self, V: Array) -> Array:
        return self.forward(V * self.first) * self.second

    def dense(self) -> Array:
        """The scaled matrix itself: its product with the identity, exact to the last bit."""
        identity = self.xp.eye(
            self.shape[-1], dtype=self.like.dtype, device=array_api_compat.device(self.like)
        )
        return self @ self.xp.broadcast_to(
            identity, (*self.shape[:-2], self.shape[-1], self.shape[-1])
        )

    def unscale(self, values: Array) -> Array:
        """`values` (..., k) of the scaled matrix in the units of A."""
        return values / self.first[..., 0] / self.second[..., 0]


def matrix(xp: Namespace, A: Array, largest: NDArray[np.floating]) -> Operator:
    """The operator of a dense A (..., m, n) whose largest entries are near `largest` (...)."""
    transposed = xp.matrix_transpose(A)
    first, second = (
        xp.asarray(scale[..., None, None], dtype=A.dtype, device=array_api_compat.device(A))
        for scale in unit_scales(largest)
    )
    return Operator(
        xp, tuple(A.shape), lambda V: A @ V, lambda U: transposed @ U, first, second, like=A
    )
