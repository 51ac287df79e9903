"""Matrices held by the columns of N values in every M: the bits of a product by a bit mask."""

import re

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spectral_kernels.product import PATTERNS, Positions, blocks, pack, prepare, unpack

from tests.support.products import DTYPES, expected_of, same


def matrix(
    m: int, n: int, pattern: tuple[int, int], dtype: torch.dtype, seed: int = 0
) -> torch.Tensor:
    """Random values, N in every M columns."""
    N, M = pattern
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(m, n // M, M, generator=generator).argsort(2)
    values = torch.randn(m, n // M, M, generator=generator).abs() + 1
    return torch.where(order < N, values, 0.0).reshape(m, n).to(dtype)


def positions_of(A: torch.Tensor, pattern: tuple[int, int]) -> Positions:
    """As the definition says, value by value."""
    M, (m, n) = pattern[1], A.shape
    width = M.bit_length() - 1
    rows = []
    for row in A.tolist():
        bits = [
            column >> bit & 1
            for group in range(0, n, M)
            for column in range(M)
            if row[group + column] != 0
            for bit in range(width)
        ]
        rows.append(np.packbits(np.array(bits, np.uint8), bitorder="little"))
    return Positions(pack(A).values, torch.from_numpy(np.stack(rows)), pattern, (m, n))


@given(
    st.integers(1, 12), st.integers(1, 160), st.sampled_from(PATTERNS), st.integers(1, 6),
    st.sampled_from(DTYPES), st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_products_have_the_bits_of_the_oracle(
    m: int, eights: int, pattern: tuple[int, int], sides: int, dtype: torch.dtype, seed: int
) -> None:
    """A code that begins in one byte and ends in the next, the last rows, whose vectors reach
    beyond the values, a value given to its neighbour.
    """
    if dtype == torch.float64:  # whose oracle is slow
        m, eights, sides = min(m, 3), min(eights, 9), min(sides, 4)
    A = matrix(m, 8 * eights, pattern, dtype, seed)
    X = torch.randn(sides, 8 * eights, generator=torch.Generator().manual_seed(seed)).to(dtype)
    held = positions_of(A, pattern)
    assert torch.equal(unpack(held), A)
    assert torch.equal(torch.cat([block.clone() for block in blocks(held, 5)]), A)
    same(prepare(held)(X), expected_of(A, X))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_threads_and_infinities(pattern: tuple[int, int]) -> None:
    """Rows that two threads write, an infinity in x that reaches rows without an entry there."""
    A = matrix(1000, 1048, pattern, torch.float32)
    X = torch.randn(3, 1048, generator=torch.Generator().manual_seed(0))
    run, packed = prepare(positions_of(A, pattern)), prepare(pack(A))
    many = run(X)
    same(many, packed(X))
    allowed = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        same(run(X), many)
    finally:
        numba.set_num_threads(allowed)
    X[1, 5] = torch.inf
    same(run(X), packed(X))


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (
            "positions",
            lambda p: torch.cat([p[:, :1] | 7, p[:, 1:]], 1),
            "positions: expected the columns of each group to ascend",
        ),
        ("positions", lambda p: p[:, 1:], "positions: expected shape (3, 9); got (3, 8)"),
        ("positions", lambda p: p.int(), "positions: expected uint8; got int32"),
        ("positions", lambda p: p.numpy(), "positions: expected <class 'torch.Tensor'>"),
        ("positions", lambda p: p | (128 * (torch.arange(9) == 8)).to(torch.uint8), "behind"),
        ("values", lambda v: v[1:], "values: expected shape (66,); got (65,)"),
        ("pattern", lambda p: (2, 6), "pattern: expected one of"),
        ("shape", lambda s: (3, 84), "8 to divide 84"),
    ],
)
def test_parts_that_do_not_fit(name, change, said) -> None:
    """A damaged file by which a product would read beyond x or the values."""
    good = vars(positions_of(matrix(3, 88, (2, 8), torch.float32), (2, 8)))
    bad = Positions(**{**good, name: change(good[name])})
    for use in (prepare, unpack):
        with pytest.raises((ValueError, TypeError), match=re.escape(said)):
            use(bad)
