"""A matrix as its two products, x -> A x and y -> A^T y, brought to unit scale."""

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from spectral_kernels.spectra._arrays import Array, Namespace, unit_scales, working_dtype

#: A matrix of half precision is widened in at most so many panels of rows, each of at least so many
#: entries: 1 MiB, so that small matrices are one panel.
PANELS = 128
PANEL_ENTRIES = 1 << 18


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
    """The operator of a dense A (..., m, n) whose largest entries are near `largest` (...).

    Libraries multiply float32 by float32: a float16 or bfloat16 A is widened a panel of rows at a
    time, so that no copy of it is held.
    """
    dtype, device = working_dtype(xp, A.dtype, "A"), array_api_compat.device(A)
    first, second = (
        xp.asarray(scale[..., None, None], dtype=dtype, device=device)
        for scale in unit_scales(largest)
    )
    if A.dtype != dtype:
        like = xp.empty((1,), dtype=dtype, device=device)
        forward, adjoint = partial(_by_panels, xp, A, dtype), partial(_sum_of_panels, xp, A, dtype)
        return Operator(xp, tuple(A.shape), forward, adjoint, first, second, like)
    transposed = xp.matrix_transpose(A)
    return Operator(
        xp, tuple(A.shape), lambda V: A @ V, lambda U: transposed @ U, first, second, like=A
    )


def _runs(A: Array) -> Iterator[slice]:
    """The rows of each panel of A (..., m, n)."""
    m, n = A.shape[-2:]
    step = max(-(-m // PANELS), PANEL_ENTRIES // n, 1)
    for start in range(0, m, step):
        yield slice(start, min(start + step, m))


# No name holds a panel: the last one is gone before the next is made.


def _by_panels(xp: Namespace, A: Array, dtype: Any, V: Array) -> Array:
    """A V."""
    return xp.concat([xp.astype(A[..., rows, :], dtype) @ V for rows in _runs(A)], axis=-2)


def _sum_of_panels(xp: Namespace, A: Array, dtype: Any, U: Array) -> Array:
    """A^T U, summed over the panels in their order."""
    parts = (
        xp.matrix_transpose(xp.astype(A[..., rows, :], dtype)) @ U[..., rows, :]
        for rows in _runs(A)
    )
    return reduce(operator.add, parts)
