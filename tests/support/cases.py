"""What the tests of the kernels share: matrices of every dtype, and the oracle from end to end."""

import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from spectral_kernels.call.arguments import entries_to_keep
from spectral_kernels.reference import oracle, rows
from spectral_kernels.reference.laws import BASES, am07_constant, named_law

DTYPES = ("float16", "bfloat16", "float32", "float64")
GROUPS = ("tensor", "row")
#: Every law, and the parameter that makes it more than another law's alias.
LAWS: dict[str, float | None] = {
    "threshold": None,
    "l1": None,
    "l2": None,
    "hybrid": 0.3,
    "row-l1": None,
    "bernstein": None,
    "am07": 50.0,
    "trimmed-l2": None,
    "quantised": None,
}


@dataclass(frozen=True)
class Case:
    """A matrix as a user holds it (`array`), and as the oracle reads it (`matrix`)."""

    array: Any
    matrix: NDArray[np.floating]
    dtype: str


def case(values: NDArray[np.floating], dtype: str) -> Case:
    """`values` rounded to `dtype`: NumPy arrays, but a torch tensor for bfloat16."""
    if dtype == "bfloat16":
        matrix: NDArray[np.floating] = oracle.round_bfloat16(values)
        return Case(torch.from_numpy(matrix).bfloat16(), matrix, dtype)
    matrix = values.astype(dtype)
    return Case(matrix, matrix, dtype)


def bits(array: Any) -> NDArray[np.unsignedinteger]:
    """The entries' bit patterns: two arrays agree bit for bit where these are equal."""
    if isinstance(array, torch.Tensor):
        array = array.detach().contiguous()
        if array.dtype == torch.bfloat16:
            array = array.view(torch.int16)
        array = array.numpy()
    array = np.ascontiguousarray(array)
    return array.view(f"u{array.dtype.itemsize}")


def oracle_bits(result: NDArray[np.floating], dtype: str) -> NDArray[np.unsignedinteger]:
    """As `bits`, of a matrix that the oracle made for `dtype`."""
    if dtype != "bfloat16":
        return bits(result)
    return (bits(oracle.round_bfloat16(result)) >> 16).astype(np.uint16)


def as_numpy(array: Any) -> Any:
    """The values as NumPy's: bfloat16 as float32."""
    if isinstance(array, torch.Tensor):
        array = array.detach()
        return (array.float() if array.dtype == torch.bfloat16 else array).numpy()
    return array


def mixed_values(shape: tuple[int, int], seed: int = 0) -> NDArray[np.float64]:
    """Both signs, four decades, repeated values and zeros of both signs.

    In float16 some entries are subnormal, and none is so large that dividing it by its probability
    would overflow.
    """
    rng = np.random.default_rng(seed)
    values = 1e-3 * rng.standard_normal(shape) * np.exp(1.5 * rng.standard_normal(shape))
    kind = rng.random(shape)
    values[kind < 0.10] = 2.0**-9
    values[kind < 0.06] = 0.0
    values[kind < 0.03] = -0.0
    return values


def normal_matrix(m: int = 37, n: int = 203, seed: int = 0) -> NDArray[np.float32]:
    """Independent standard normal entries."""
    return np.random.default_rng(seed).standard_normal((m, n)).astype(np.float32)


def integer_factors(
    m: int, n: int, rank: int = 3, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Factors whose product is exact in float32, whatever the order of the sum."""
    rng = np.random.default_rng(seed)
    left = rng.integers(-4, 5, (m, rank)).astype(np.float32)
    return left, rng.integers(-4, 5, (rank, n)).astype(np.float32)


def solving_parameter(law: str, parameter: float | None, n: int) -> float:
    """The parameter that the budget is solved with."""
    named = named_law(law, parameter)
    return am07_constant(n) if law == "am07" and parameter is None else named.parameter


def oracle_sparsify(
    A: NDArray[np.floating], *, sparsity: float, law: str = "threshold",
    law_parameter: float | None = None, rescale: bool = False, score: str = "magnitude",
    factors: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
    mixture: tuple[float, float] = (0.0, 0.0),
    row: NDArray[np.float32] | None = None, column: NDArray[np.float32] | None = None,
    group: str = "tensor", seed: int = 0, stream: int = 0, row_offset: int = 0,
    column_offset: int = 0,
) -> NDArray[np.floating]:  # fmt: skip
    """What `sparsify` must return, by the oracle's functions alone."""
    m, n = A.shape
    named = named_law(law, law_parameter)
    per_row = group == "row"
    budget = entries_to_keep(n if per_row else A.size, sparsity)
    if named.row_weights != "none":
        with np.errstate(over="ignore"):
            l1 = rows.row_l1(np.abs(A).astype(np.float32))
        total = max(budget * m if per_row else budget, 1)
        weights = (
            rows.row_l1_weights(l1)
            if named.row_weights == "l1"
            else rows.bernstein_row_weights(l1, n, total)
        )
        row = weights if row is None else weights * row
    B = None if factors is None else oracle.low_rank(*factors)
    s = oracle.score(A, BASES[score], B, mixture, row, column)  # type: ignore[index]
    out = np.empty_like(A)
    for first in range(0, m, 1 if per_row else m):
        part = slice(first, first + (1 if per_row else m))
        if not named.draws or budget in (0, s[part].size):
            keep = oracle.threshold_mask(s[part], budget)
            out[part] = np.where(keep, A[part], np.zeros((), A.dtype))
            continue
        solved = oracle.solve(
            s[part], named.shape, solving_parameter(law, law_parameter, n), budget
        )
        t = oracle.probabilities(s[part], named.shape, solved)
        out[part] = oracle.sample(
            A[part], t, rescale=rescale, seed=seed, stream=stream,
            row_offset=row_offset + first, column_offset=column_offset,
        )  # fmt: skip
    return out


def largest(A: Any, budget: int) -> Any:
    """The mask of the `budget` largest magnitudes, the earlier index first, by a sort of pairs."""
    magnitude = np.abs(np.asarray(A, np.float64)).ravel()
    order = np.lexsort((np.arange(magnitude.size), -magnitude))
    mask = np.zeros(magnitude.size, bool)
    mask[order[:budget]] = True
    return mask.reshape(np.shape(A))


def capped_scale(g: NDArray[np.float64], budget: float) -> float:
    """c with sum min(1, c g) = budget, by sorting, in float64; inf where all of g > 0 is kept.

    With the k largest capped, c = (budget - k) / (the sum of the others); the right k is the
    first for which the largest of the others is not over the cap.
    """
    positive = np.sort(g[g > 0].astype(np.float64), axis=None)[::-1]
    if budget >= positive.size:
        return float("inf")
    others = np.cumsum(positive[::-1])[::-1]
    k = np.arange(positive.size)
    capped = int(np.argmax((budget - k) * positive <= others))
    return float((budget - capped) / others[capped])


def isolated(code: str, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run `code` in a Python of its own: it may crash, or be measured, without harm to the rest."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
