"""Matrices held by their gaps: the same matrix, and the bits of a product by a bit mask."""

import re

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spectral_kernels.product import Deltas, pack, prepare, unpack

from tests.support.products import DTYPES, expected_of, same, sparse


def deltas_of(A: torch.Tensor) -> Deltas:
    """As the definition says, entry by entry."""
    word = {2: torch.int16, 4: torch.int32, 8: torch.int64}[A.element_size()]
    found, zeros = [], 0
    for stored in (A.reshape(-1).view(word) != 0).tolist():
        if stored:
            found.append(zeros)
            zeros = 0
        else:
            zeros += 1
            if zeros == 255:
                found.append(255)
                zeros = 0
    deltas = torch.tensor(found, dtype=torch.uint8)
    return Deltas(pack(A).values, deltas, (A.shape[0], A.shape[1]))


@given(
    st.integers(1, 12), st.integers(1, 2600), st.sampled_from([0.0, 0.002, 0.02, 0.3, 1.0]),
    st.integers(1, 17), st.sampled_from(DTYPES), st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_products_have_the_bits_of_the_oracle(
    m: int, n: int, keep: float, sides: int, dtype: torch.dtype, seed: int
) -> None:
    """A gap over 254, over an empty row or over the end of a tile that is lost or counted twice, a
    value given to its neighbour, sums in another order.
    """
    A, X = sparse((m, n), keep, dtype, seed), sparse((sides, n), 0.9, dtype, seed + 1)
    if dtype == torch.float64:  # whose oracle is slow
        A, X = A[:3, :150], X[:2, :150]
    held = deltas_of(A)
    assert torch.equal(unpack(held), A)
    run = prepare(held)
    same(run(X), expected_of(A, X))
    wanted = np.random.default_rng(seed).integers(0, A.shape[0], 5)
    assert torch.equal(run.rows(wanted), A[wanted])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_blocks_and_threads(dtype: torch.dtype) -> None:
    """A block of rows that starts at another value than where the walk before it ended, a row that
    two threads write, an infinity in x that reaches rows without an entry there.
    """
    A, X = sparse((900, 1100), 0.04, dtype), sparse((9, 1100), 1.0, dtype, 1)
    A[100:400] = 0.0
    held, packed = deltas_of(A), prepare(pack(A))
    run, allowed = prepare(held), numba.get_num_threads()
    assert torch.equal(unpack(held), A)
    X[0, 3] = torch.inf
    for sides in (1, 3, 9):
        many = run(X[:sides])
        same(many, packed(X[:sides]))
        numba.set_num_threads(1)
        try:
            same(run(X[:sides]), many)
        finally:
            numba.set_num_threads(allowed)
    wanted = np.array([899, 0, 399, 400, 400, 401, 2])
    assert torch.equal(run.rows(wanted), A[wanted])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d[1:], "expected the gaps of 6 values among 3200 entries; got others"),
        (lambda d: d[:-1], "got others"),
        (lambda d: torch.cat([d, d[-1:]]), "got others"),
        (lambda d: torch.cat([d[:1] + 1, d[1:]]), None),
        (lambda d: torch.where(d == 255, 254, d).to(torch.uint8), "got others"),
        (lambda d: d.int(), "deltas: expected uint8; got int32"),
        (lambda d: d[None], "deltas: expected one dimension; got (1, 17)"),
        (lambda d: d.numpy(), "deltas: expected <class 'torch.Tensor'>"),
    ],
)
def test_gaps_that_do_not_fit(change, said) -> None:
    """A damaged file by which a product would read beyond x or the values."""
    A = torch.zeros(4, 800)
    A[0, 3] = A[1, 700] = A[1, 701] = A[2, 5] = A[3, 0] = A[3, 9] = 1.0
    good = deltas_of(A)
    bad = Deltas(good.values, change(good.deltas), good.shape)
    for use in (prepare, unpack):
        if said is None:  # other columns, and all of them there
            use(bad)
            continue
        with pytest.raises((ValueError, TypeError), match=re.escape(said)):
            use(bad)


def test_rows_that_are_not_there() -> None:
    """A row read from the memory behind the matrix."""
    run = prepare(deltas_of(torch.eye(4)))
    assert run.rows(np.array([], np.int64)).shape == (0, 4)
    for wrong in ([4], [0, -1]):
        with pytest.raises(IndexError, match="indices: expected 0 to 3"):
            run.rows(np.array(wrong))
    with pytest.raises(TypeError, match="packed: expected Deltas; got Packed"):
        prepare(pack(torch.eye(4))).rows(np.array([0]))
