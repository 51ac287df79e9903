"""Patterns of zeros that hardware asks for: N of every M, and whole blocks.

"2:4" keeps 2 of every 4 consecutive columns of a row, see `nm`. "16x16" keeps or drops blocks of 16
rows by 16 columns. Kept are the blocks with the largest sum of squared scores, exactly as many as
the sparsity asks for; among equals the earlier block, row by row, comes first. A matrix that such
groups or blocks do not divide is refused.
"""

import math
import re
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from spectral_kernels._validation import is_number
from spectral_kernels.reference.nm import WIDEST

Float32 = NDArray[np.float32]
#: The score of a block whose entries score 0: a block to keep must differ from one to drop.
LEAST_SCORE = 2.0**-149


@dataclass(frozen=True)
class NM:
    """`keep` of every `of` consecutive columns of a row.

    >>> from spectral_kernels import NM
    >>> str(NM(2, 4)), NM(2, 4).sparsity
    ('2:4', 0.5)
    """

    keep: int
    of: int

    @property
    def sparsity(self) -> float:
        """The fraction of zeros that it implies."""
        return (self.of - self.keep) / self.of

    def __str__(self) -> str:
        return f"{self.keep}:{self.of}"


@dataclass(frozen=True)
class Blocks:
    """Blocks of `rows` by `columns`.

    >>> from spectral_kernels import Blocks
    >>> str(Blocks(16, 8))
    '16x8'
    """

    rows: int
    columns: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}"


Pattern = NM | Blocks


def parse_pattern(pattern: str, argument: str = "pattern") -> Pattern:
    """The pattern called "N:M" or "RxC".

    Args:
        pattern: its name, such as "2:4" (N of M) or "16x16" (blocks of rows by columns).
        argument: what an error calls it.

    Returns:
        The pattern as a value.

    Raises:
        TypeError: not a string.
        ValueError: neither form, or numbers that make no pattern.

    >>> from spectral_kernels import parse_pattern
    >>> parse_pattern("2:4")
    NM(keep=2, of=4)
    """
    if not isinstance(pattern, str):
        raise TypeError(
            f"{argument}: expected a string such as '2:4' or '16x16'; got {type(pattern).__name__}"
        )
    found = re.fullmatch(r"([0-9]{1,9})([:x])([0-9]{1,9})", pattern)
    if found is None:
        raise ValueError(
            f"{argument}: expected 'N:M' or 'RxC', as '2:4' or '16x16'; got {pattern!r}"
        )
    first, second = int(found[1]), int(found[3])
    if found[2] == "x":
        if first == 0 or second == 0:
            raise ValueError(f"{argument}: expected blocks of at least 1 by 1; got {pattern!r}")
        return Blocks(first, second)
    if not 0 < first < second <= WIDEST:
        raise ValueError(f"{argument}: expected N of M with 0 < N < M <= {WIDEST}; got {pattern!r}")
    return NM(first, second)


@overload
def pattern_sparsity(pattern: str | None, sparsity: float | None, default: float) -> float: ...


@overload
def pattern_sparsity(pattern: str | None, sparsity: float | None) -> float | None: ...


def pattern_sparsity(
    pattern: str | None, sparsity: float | None, default: float | None = None
) -> float | None:
    """The sparsity to prune to: the one given, the one that "N:M" implies, or the default.

    Args:
        pattern: its name, or None.
        sparsity: the fraction of zeros asked for, or None.
        default: what None stands for where no "N:M" implies it.

    Returns:
        The fraction of zeros; None where nothing says it.

    Raises:
        TypeError, ValueError: of `parse_pattern`, or a sparsity that contradicts the pattern.

    >>> from spectral_kernels import pattern_sparsity
    >>> pattern_sparsity("1:4", None), pattern_sparsity("16x16", 0.9)
    (0.75, 0.9)
    """
    parsed = None if pattern is None else parse_pattern(pattern)
    if not isinstance(parsed, NM):
        return default if sparsity is None else sparsity
    if is_number(sparsity) and not math.isclose(sparsity, parsed.sparsity, abs_tol=1e-6):
        raise ValueError(
            f"sparsity: pattern {pattern!r} has {parsed.sparsity:.6g} of zeros, so expected that "
            f"or none; got {sparsity!r}"
        )
    return parsed.sparsity if sparsity is None else sparsity


def check_divides(pattern: Pattern, m: int, n: int) -> None:
    """Refuse a matrix (m, n) that the pattern does not divide.

    Args:
        pattern: "N:M" needs n in multiples of M, blocks both sides in multiples of theirs.
        m, n: rows and columns.

    Raises:
        ValueError: names the pattern and the shape.

    >>> from spectral_kernels import check_divides, parse_pattern
    >>> check_divides(parse_pattern("2:4"), m=3, n=8)
    """
    rows, columns = (1, pattern.of) if isinstance(pattern, NM) else (pattern.rows, pattern.columns)
    for length, by, kind in ((m, rows, "rows"), (n, columns, "columns")):
        if length % by:
            raise ValueError(
                f"pattern: expected {kind} in multiples of {by} for {str(pattern)!r}; "
                f"got a matrix of {m} x {n}"
            )


def block_scores(s: Float32, pattern: Blocks) -> Float32:
    """The oracle: root mean square of the scores s (m, n) in each block, at least 2^-149.

    Summed in float64, the rows of a block one after the other, and in each from left to right.
    """
    m, n = s.shape
    wide = s.reshape(m // pattern.rows, pattern.rows, n // pattern.columns, pattern.columns)
    total = np.zeros((m // pattern.rows, n // pattern.columns))
    for i in range(pattern.rows):
        for j in range(pattern.columns):
            entry = wide[:, i, :, j].astype(np.float64)
            total += entry * entry
    mean = np.sqrt(total / (pattern.rows * pattern.columns))
    return np.maximum(mean.astype(np.float32), np.float32(LEAST_SCORE))
