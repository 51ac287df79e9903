"""Matrices of known spectra, and the array libraries that the spectral tests run under."""

from typing import Any

import array_api_strict
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

LIBRARIES = [
    "numpy",
    "torch",
    "strict",
    pytest.param("torch-cuda", marks=pytest.mark.gpu),
    pytest.param("cupy", marks=pytest.mark.gpu),
]

ROWS, COLUMNS = 260, 200
_INDEX = np.arange(1.0, COLUMNS + 1)

#: Singular values of ROWS x COLUMNS matrices: fast, slow and no decay, gaps, exact low rank,
#: repeated values (more often than a quarter of a block), extreme scales, one huge outlier, zero.
SPECTRA = {
    "fast": np.exp(-_INDEX / 5),
    "slow": _INDEX**-0.7,
    "slower": _INDEX**-0.3,
    "linear": 2 - _INDEX / COLUMNS,
    "gap": np.where(_INDEX <= 9, 10.0, 0.1),
    "low rank": np.where(_INDEX <= 5, 1 / _INDEX, 0.0),
    "repeated": 2.0 ** -((_INDEX - 1) // 6),
    "orthogonal": np.ones(COLUMNS),
    "tiny": 1e-20 * _INDEX**-0.7,
    "huge": 1e20 * _INDEX**-0.7,
    "outlier": np.where(_INDEX == 1, 1e4, _INDEX**-0.5),
    "zero": np.zeros(COLUMNS),
}


def matrix_of(values: Matrix, rows: int = ROWS, seed: int = 0) -> Matrix:
    """A float64 matrix (rows, len(values)) with these singular values and random vectors."""
    generator = np.random.default_rng(seed)
    U, _ = np.linalg.qr(generator.standard_normal((rows, len(values))))
    V, _ = np.linalg.qr(generator.standard_normal((len(values), len(values))))
    return (U * values) @ V.T


def to_library(A: NDArray[Any], library: str) -> Any:
    """`A` as an array of `library`, dtype kept."""
    if library == "torch":
        return torch.from_numpy(np.ascontiguousarray(A))
    if library == "torch-cuda":
        return torch.from_numpy(np.ascontiguousarray(A)).cuda()
    if library == "strict":
        return array_api_strict.asarray(A)
    if library == "cupy":
        return pytest.importorskip("cupy").asarray(A)
    return A


def to_numpy(x: Any) -> Matrix:
    """`x` of any library as a float64 NumPy array."""
    if isinstance(x, torch.Tensor):
        x = x.cpu()
    elif hasattr(x, "get"):
        x = x.get()
    return np.asarray(x).astype(np.float64)


def rounding(dtype: str) -> float:
    """What 'to rounding' means for values relative to the largest one: 50 machine epsilons."""
    return 50 * float(np.finfo(dtype).eps)
