"""How wide the blocks of randomized_svd are, and that narrow ones miss no copy of a value."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from spectral_kernels.spectra import _krylov, svd
from spectral_kernels.spectra.svd import default_blocks, randomized_svd

from tests.support.spectra_cases import LIBRARIES, matrix_of, rounding, to_library, to_numpy

RANK = 64
NARROW, WIDE = default_blocks(RANK)
COLUMNS = 450
TOLERANCE = 1e-3
_INDEX = np.arange(1.0, COLUMNS + 1)


def copies(count: int, spread: float, above: int) -> np.ndarray:
    """Values with `count` near 1, the others with a gap to them, `above` of these larger."""
    cluster = np.linspace(1 + spread, 1, count)
    tail = 0.6 * _INDEX[: COLUMNS - above - count] ** -0.7
    return np.concatenate([np.linspace(3, 1.5, above), cluster, tail])


def tall(values: np.ndarray) -> np.ndarray:
    """A float32 matrix of 500 rows with these singular values."""
    return matrix_of(values, rows=500).astype(np.float32)


SPECTRA = {
    "slow": _INDEX**-0.7,
    "fast": np.exp(-_INDEX / 20),
    "steps": 2.0 ** -np.floor(_INDEX / 20),
    "30 copies": copies(30, 0.0, above=5),
    "34 copies": copies(34, 0.0, above=20),
    "60 copies": copies(60, 0.0, above=0),
    "80 copies": copies(80, 0.0, above=3),
    "close": copies(50, 1e-4, above=10),
    "spread": copies(50, 0.2, above=10),
}


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("family", SPECTRA)
def test_every_copy_is_found(family: str, library: str) -> None:
    """Catches a default block in which a value that the matrix has often is counted short."""
    values = SPECTRA[family]
    A = tall(values)
    found = randomized_svd(to_library(A, library), RANK, tolerance=TOLERANCE)
    assert found.iterations > 0
    slack = rounding("float32") * values[0]
    deviation = np.abs(to_numpy(found.S) - values[:RANK])
    assert (deviation <= TOLERANCE * values[:RANK] + slack).all()
    assert (deviation <= 2 * to_numpy(found.error) + slack / 10).all()


@pytest.mark.parametrize(
    ("values", "block"),
    [
        (_INDEX**-0.7, NARROW),
        (copies(30, 0.0, above=5), NARROW),
        (copies(60, 1e-3, above=0), WIDE),
        (np.where(_INDEX <= 9, 1.0, 0.0), NARROW),
        (np.zeros(COLUMNS), NARROW),
    ],
    ids=["decay", "few-copies", "crowd", "low-rank", "zero"],
)
def test_the_block_is_wide_only_where_values_crowd(values: np.ndarray, block: int) -> None:
    """Catches a switch that never comes, comes for zeros or noise, or keeps the narrow space."""
    A = tall(values)
    found, expected = randomized_svd(A, RANK), randomized_svd(A, RANK, block=block)
    assert found.iterations == expected.iterations
    np.testing.assert_array_equal(found.U, expected.U)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_block_wider_than_the_rank(library: str) -> None:
    """Catches a look for crowds among fewer values than a block has columns."""
    found = randomized_svd(to_library(tall(copies(60, 0.0, above=0)), library), 28)
    assert found.iterations > 0
    np.testing.assert_allclose(to_numpy(found.S), 1.0, rtol=TOLERANCE)


def test_one_crowded_matrix_of_a_batch_is_enough() -> None:
    """Catches a switch that looks at the first matrix, or waits for all of them."""
    A = np.stack([tall(_INDEX**-0.7), tall(copies(60, 0.0, above=0))])
    found, expected = randomized_svd(A, RANK), randomized_svd(A, RANK, block=WIDE)
    assert found.iterations == expected.iterations


def test_without_the_switch_copies_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The switch earns its keep: without it, narrow blocks take a value for half as frequent."""
    values = copies(60, 0.0, above=0)
    A = tall(values)
    monkeypatch.setattr(svd, "default_blocks", lambda rank: (24, rank + 8))
    np.testing.assert_allclose(randomized_svd(A, RANK).S, values[:RANK], rtol=TOLERANCE)
    monkeypatch.setattr(_krylov, "CROWDED", -1.0)
    assert np.abs(randomized_svd(A, RANK).S / values[:RANK] - 1).max() > 0.1


def test_a_depth_keeps_the_wide_block() -> None:
    """Catches a depth that buys fewer columns than the rank."""
    A = tall(_INDEX**-0.7)
    found, expected = (randomized_svd(A, RANK, depth=1, block=block) for block in (None, WIDE))
    np.testing.assert_array_equal(found.S, expected.S)


@given(rank=st.integers(1, 10_000))
def test_default_blocks(rank: int) -> None:
    """Catches a first block wider than the second, or one so narrow that it was not measured."""
    narrow, wide = default_blocks(rank)
    assert rank < wide
    assert min(wide, 32) <= narrow <= wide <= 2 * narrow + 9
