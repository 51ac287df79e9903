"""The arguments of a call, checked: weight, sparsity, and what its scores are made of."""

import math
from typing import Any

import numpy as np

from spectral_kernels._validation import is_number, require_plain
from spectral_kernels.backends.choose import backend_for
from spectral_kernels.backends.deferred import Deferred
from spectral_kernels.backends.protocol import DTYPES, Backend, Draw, Matrix, Scoring
from spectral_kernels.reference import budget as bg
from spectral_kernels.reference.laws import BASES, SCORE_NAMES, Base, Law
from spectral_kernels.reference.patterns import Blocks, Pattern, check_divides

#: The least of the normal numbers of float32.
LEAST_LARGEST = 2.0**-126


def check_weight(weight: Any, argument: str = "weight") -> Backend:
    """The backend of an array that can be sparsified.

    Args:
        weight: the array; NumPy, torch or CuPy.
        argument: what an error calls it.

    Returns:
        The backend: `name` is "cpu" or "gpu".

    Raises:
        TypeError: not an array of a known kind; a masked, nested, sparse or wrapped one, or one of
            another machine's byte order; a dtype that is not one of `DTYPES`.
        ValueError: fewer than two dimensions, or empty.

    >>> import numpy as np
    >>> from spectral_kernels import check_weight
    >>> check_weight(np.ones((2, 3))).name
    'cpu'
    """
    backend = backend_for(weight, argument)
    require_plain(weight, argument)
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
    """How many entries a sparsity leaves: K = size - round(sparsity * size), ties to even.

    Args:
        size: number of entries.
        sparsity: the fraction of zeros.

    Returns:
        K.

    Raises:
        TypeError: sparsity is not a number.
        ValueError: it is not in [0, 1).

    >>> from spectral_kernels import entries_to_keep
    >>> entries_to_keep(1000, 0.9)
    100
    """
    if not is_number(sparsity):
        raise TypeError(f"sparsity: expected a number; got {type(sparsity).__name__}")
    if not 0.0 <= sparsity < 1.0:
        hint = f"; {sparsity:g} % is {sparsity / 100:g}" if 1.0 < sparsity < 100.0 else ""
        raise ValueError(
            f"sparsity: expected the fraction of zeros, in [0, 1); got {sparsity!r}{hint}"
        )
    return size - round(float(sparsity) * size)


def make_scoring(
    backend: Backend,
    A: Matrix,
    score: str,
    factors: tuple[Any, Any] | None,
    mixture: tuple[float, float] = (0.0, 0.0),
    row: Any = None,
    column: Any = None,
    deferred: Deferred | None = None,
) -> Scoring:
    """A checked `Scoring`; `factors` are left (m, k) and right (k, n), B = left @ right.

    With `deferred`, values on a device that are out of range are counted there; see `check_vector`.
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
            check_vector(backend, factor, "factors", None, deferred, A) for factor in factors
        )
        fits = left.ndim == right.ndim == 2 and left.shape[1] == right.shape[0] > 0
        if not fits or (left.shape[0], right.shape[1]) != (A.m, A.n):
            raise ValueError(
                f"factors: expected shapes ({A.m}, k) and (k, {A.n}) with k >= 1; "
                f"got {tuple(left.shape)} and {tuple(right.shape)}"
            )
    weights = (0.0, 0.0) if base != Base.MIXTURE else check_mixture(mixture)
    row = None if row is None else check_vector(backend, row, "row", A.m, deferred, A)
    column = None if column is None else check_vector(backend, column, "column", A.n, deferred, A)
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
    deferred: Deferred | None = None,
    beside: Matrix | None = None,
) -> Any:
    """Finite float32 values of the backend's own kind; with a length, a vector >= 0 of it.

    They lie on the device of the matrix `beside` them. On a device, values out of range are only
    counted, in `deferred`, if that is given.
    """
    if not hasattr(values, "shape") or not hasattr(values, "dtype"):
        raise TypeError(f"{argument}: expected an array; got {type(values).__name__}")
    require_plain(values, argument)
    if length is not None and tuple(values.shape) != (length,):
        raise ValueError(f"{argument}: expected shape ({length},); got {tuple(values.shape)}")
    vector = backend.vector(values, beside)
    if deferred is not None and not isinstance(vector, np.ndarray):
        bad = ~(abs(vector) <= bg.FLOAT32_MAX)
        expected = "finite float32 values"
        if length is not None:
            bad, expected = bad | (vector < 0), f"{expected} >= 0"
        deferred.add(bad.sum(), f"{argument}: expected {expected}; got {{}} that are not")
    elif math.prod(vector.shape) > 0:
        low, high = float(vector.min()), float(vector.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"{argument}: expected finite float32 values; got {low} to {high}")
        if length is not None and low < 0.0:
            raise ValueError(f"{argument}: expected values >= 0; got {low}")
    return vector


def check_pattern(pattern: Pattern, A: Matrix, law: Law, draw: Draw) -> None:
    """Refuse a matrix that the pattern does not divide, and a law that it does not know.

    Raises:
        ValueError: names the argument, what was expected and what came.
    """
    check_divides(pattern, A.m, A.n)
    if isinstance(pattern, Blocks):
        if law.draws:
            raise ValueError(f"pattern: blocks are kept by law 'threshold' only; got {law.name!r}")
        return
    if draw.column % pattern.of:
        raise ValueError(
            f"column_offset: expected a multiple of {pattern.of} for {str(pattern)!r}; "
            f"got {draw.column}"
        )
    if law.name not in ("threshold", "l1", "quantised", "l2"):
        raise ValueError(
            "pattern: N of M is drawn by law 'l1', 'quantised' or 'l2', or kept by 'threshold'; "
            f"got {law.name!r}"
        )


def groups_too_small(A: Matrix, by_row: bool) -> Any:
    """How many groups have a largest entry that is not 0 and under `LEAST_LARGEST`.

    The groups are the rows, or the matrix. An int, or an integer on the device.
    """
    import array_api_compat  # noqa: PLC0415 (all else here does without)

    entries = A.storage.reshape(A.m if by_row else 1, -1)
    xp = array_api_compat.array_namespace(entries)

    def largest(some: Any) -> Any:
        return xp.maximum(xp.max(some, axis=1), -xp.min(some, axis=1))

    if isinstance(entries, np.ndarray):
        # One entry that is large enough clears its group, and is soon found.
        entries = entries[largest(entries[:, :64]) < LEAST_LARGEST]
        if entries.size == 0:
            return 0
    found = largest(entries)
    count = xp.sum((found > 0.0) & (found < LEAST_LARGEST))
    return int(count) if isinstance(count, np.generic) else count
