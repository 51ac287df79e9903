"""The arguments of a call, checked: weight, sparsity, and what its scores are made of."""

import math
from typing import Any

import numpy as np

from spectral_kernels._validation import is_number
from spectral_kernels.backends.deferred import Flaws
from spectral_kernels.backends.protocol import DTYPES, Backend, Matrix, Scoring, backend_for
from spectral_kernels.reference import budget as bg
from spectral_kernels.reference.laws import BASES, SCORE_NAMES, Base


def check_weight(weight: Any, argument: str = "weight") -> Backend:
    """The backend of an array that can be sparsified.

    Raises:
        TypeError: not an array of a known kind, or a dtype that is not one of `DTYPES`.
        ValueError: fewer than two dimensions, or empty.
    """
    backend = backend_for(weight, argument)
    if str(getattr(weight, "layout", "torch.strided")) != "torch.strided":
        raise TypeError(f"{argument}: expected a dense tensor; got layout {weight.layout}")
    dtype = str(weight.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise TypeError(f"{argument}: expected dtype {', '.join(DTYPES)}; got {dtype}")
    if weight.ndim < 2:
        raise ValueError(
            f"{argument}: expected two dimensions or more; got shape {tuple(weight.shape)}"
        )
    if math.prod(weight.shape) == 0:
        raise ValueError(
            f"{argument}: expected at least one entry; got shape {tuple(weight.shape)}"
        )
    return backend


def entries_to_keep(size: int, sparsity: float | None) -> int:
    """K = size - round(sparsity * size), ties to even.

    Raises:
        TypeError: sparsity is not a number. ValueError: it is not in [0, 1).
    """
    if not is_number(sparsity):
        raise TypeError(f"sparsity: expected a number; got {type(sparsity).__name__}")
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"sparsity: expected the fraction of zeros, in [0, 1); got {sparsity!r}")
    return size - round(float(sparsity) * size)


def make_scoring(
    backend: Backend,
    A: Matrix,
    score: str,
    factors: tuple[Any, Any] | None,
    mixture: tuple[float, float] = (0.0, 0.0),
    row: Any = None,
    column: Any = None,
    flaws: Flaws | None = None,
) -> Scoring:
    """A checked `Scoring`; `factors` are left (m, k) and right (k, n), B = left @ right.

    With `flaws` values on a device are counted there, see `check_vector`.
    """
    if score not in SCORE_NAMES:
        raise ValueError(f"score: expected one of {', '.join(SCORE_NAMES)}; got {score!r}")
    base = BASES[score]
    left = right = None
    if base != Base.MAGNITUDE:
        if not isinstance(factors, tuple | list) or len(factors) != 2:
            raise ValueError(
                f"factors: expected (left, right), the low rank of score {score!r}; "
                f"got {factors!r:.80}"
            )
        left, right = (
            check_vector(backend, factor, "factors", None, flaws, A) for factor in factors
        )
        fits = left.ndim == right.ndim == 2 and left.shape[1] == right.shape[0] > 0
        if not fits or (left.shape[0], right.shape[1]) != (A.m, A.n):
            raise ValueError(
                f"factors: expected shapes ({A.m}, k) and (k, {A.n}) with k >= 1; "
                f"got {tuple(left.shape)} and {tuple(right.shape)}"
            )
    weights = (0.0, 0.0) if base != Base.MIXTURE else check_mixture(mixture)
    row = None if row is None else check_vector(backend, row, "row", A.m, flaws, A)
    column = None if column is None else check_vector(backend, column, "column", A.n, flaws, A)
    return Scoring(base, left, right, weights, row, column)


def check_mixture(mixture: Any) -> tuple[float, float]:
    """The weights (b, a) of a mixed score: finite, not negative, not both zero."""
    try:
        b, a = (float(weight) for weight in mixture)
    except (TypeError, ValueError):
        raise ValueError(f"mixture: expected two weights (b, a); got {mixture!r}") from None
    if not (0.0 <= b < math.inf and 0.0 <= a < math.inf and a + b > 0.0):
        raise ValueError(f"mixture: expected weights >= 0, not both 0; got {mixture!r}")
    return b, a


def check_vector(
    backend: Backend,
    values: Any,
    argument: str,
    length: int | None,
    flaws: Flaws | None = None,
    beside: Matrix | None = None,
) -> Any:
    """Finite float32 values of the backend's own kind; with a length, a vector >= 0 of it.

    They lie on the device of the matrix `beside` them.

    On a device, values out of range are only counted, in `flaws`, if that is given.
    """
    if not hasattr(values, "shape") or not hasattr(values, "dtype"):
        raise TypeError(f"{argument}: expected an array; got {type(values).__name__}")
    if length is not None and tuple(values.shape) != (length,):
        raise ValueError(f"{argument}: expected shape ({length},); got {tuple(values.shape)}")
    vector = backend.vector(values, beside)
    if flaws is not None and not isinstance(vector, np.ndarray):
        bad = ~(abs(vector) <= bg.FLOAT32_MAX)
        expected = "finite float32 values"
        if length is not None:
            bad, expected = bad | (vector < 0), f"{expected} >= 0"
        flaws.add(bad.sum(), f"{argument}: expected {expected}; got {{}} that are not")
    elif math.prod(vector.shape) > 0:
        low, high = float(vector.min()), float(vector.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"{argument}: expected finite float32 values; got {low} to {high}")
        if length is not None and low < 0.0:
            raise ValueError(f"{argument}: expected values >= 0; got {low}")
    return vector
