"""How far a sparse matrix's spectrum is from that of the original."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from spectral_kernels.spectra import randomized_svd, spectral_error

from spectral_engine._util.checks import one_of
from spectral_engine.matrix.arrays import as_matrix, check_rank, frobenius_norm, largest_magnitude

Algorithm = Literal["auto", "exact", "matrix-free"]
#: Up to this min(m, n) an exact SVD in float64 is affordable.
EXACT_SIZE = 512
#: Singular values that a row of a report holds of a weight.
LEADING = 64


@dataclass(frozen=True)
class Errors:
    """Errors of S against A.

    spectral: ||A - S||_2 / ||A||_2. frobenius: ||A - S||_F / ||A||_F.
    singular_values: |sigma_i(S) - sigma_i(A)| / sigma_i(A) of the leading values; where
    sigma_i(A) is 0, the value is 0 if sigma_i(S) is too, else inf.
    left_angles, right_angles: principal angles, radians ascending, between the leading left and
    right singular subspaces (Bjorck, Golub 1973); of a matrix-free comparison, between those found.
    original, sparse: the leading singular values themselves, descending.
    """

    spectral: float
    frobenius: float
    singular_values: NDArray[np.float64]
    left_angles: NDArray[np.float64]
    right_angles: NDArray[np.float64]
    original: NDArray[np.float64]
    sparse: NDArray[np.float64]

    @property
    def mean_singular_value(self) -> float:
        """Mean relative error of the leading singular values."""
        return float(self.singular_values.mean())

    def to_dict(self) -> dict[str, float | list[float]]:
        """Plain numbers and lists."""
        return {
            "spectral": self.spectral,
            "frobenius": self.frobenius,
            "mean_singular_value": self.mean_singular_value,
            "singular_values": self.singular_values.tolist(),
            "left_angles": self.left_angles.tolist(),
            "right_angles": self.right_angles.tolist(),
            "original": self.original.tolist(),
            "sparse": self.sparse.tolist(),
        }


def errors(original: Any, sparse: Any, rank: int = 64, *, method: Algorithm = "auto") -> Errors:
    """Relative errors of `sparse` against `original`, both seen as (shape[0], -1).

    Args:
        original, sparse: arrays of one shape, each NumPy, torch or CuPy; `sparse` may be a sparse
            torch tensor.
        rank: how many leading singular values and vectors are compared; min(m, n) if that is less.
        method: "exact" takes full SVDs in float64. "matrix-free" uses `randomized_svd` (values to
            1e-3) and a block Golub-Kahan estimate of ||A - S||_2 (to 1e-3, from below), which
            never forms the difference. "auto" is exact up to min(m, n) = 512.

    Returns:
        The errors, as plain numbers and arrays.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.

    Example:
        >>> import numpy as np
        >>> found = errors(np.diag([3.0, 2.0, 1.0]), np.diag([3.0, 2.0, 0.0]))
        >>> round(found.spectral, 4), found.singular_values.tolist()
        (0.3333, [0.0, 0.0, 1.0])
    """
    return _compared(original, sparse, rank, method)[0]


def _compared(original: Any, sparse: Any, rank: int, method: Algorithm) -> tuple[Errors, float]:
    """`errors`, and ||A - S||_2."""
    one_of("method", method, ("auto", "exact", "matrix-free"))
    if isinstance(sparse, torch.Tensor) and not sparse.is_nested:
        sparse = sparse.detach().to_dense() if sparse.layout != torch.strided else sparse
    A, S = as_matrix(original, "original"), as_matrix(sparse, "sparse")
    if tuple(original.shape) != tuple(sparse.shape):
        raise ValueError(
            f"sparse: expected the shape of original, {tuple(original.shape)}; "
            f"got {tuple(sparse.shape)}"
        )
    if A.device != S.device:
        raise ValueError(f"sparse: expected it where original is, on {A.device}; got {S.device}")
    for matrix, argument in ((A, "original"), (S, "sparse")):
        if not math.isfinite(largest_magnitude(matrix)):
            raise ValueError(f"{argument}: expected finite entries; got NaN or infinity")
    smaller = min(A.shape)
    rank = min(check_rank(rank), smaller)
    norm = frobenius_norm(A)
    frobenius = _ratio(frobenius_norm(A, S), norm)
    if method == "exact" or (method == "auto" and smaller <= EXACT_SIZE):
        A, S = A.double(), S.double()
        U, sigma, Vh = torch.linalg.svd(A, full_matrices=False)
        Us, tau, Vsh = torch.linalg.svd(S, full_matrices=False)
        difference = float(torch.linalg.matrix_norm(A - S, 2))
        U, Us, Vh, Vsh = U[:, :rank], Us[:, :rank], Vh[:rank], Vsh[:rank]
        sigma, tau = sigma[:rank], tau[:rank]
        error = error_after = torch.finfo(torch.float64).eps * max(A.shape) * sigma[:1]
    else:
        U, sigma, Vh, error, _ = randomized_svd(A, rank)
        Us, tau, Vsh, error_after, _ = randomized_svd(S, rank)
        difference = float(spectral_error(A, S).value)
    # What rounding leaves of a value that is zero would be compared with more of the same.
    sigma, tau = torch.where(sigma <= error, 0.0, sigma), torch.where(tau <= error_after, 0.0, tau)
    before, after = (values.double().cpu().numpy() for values in (sigma, tau))
    found = Errors(
        _ratio(difference, float(before[0])),
        frobenius,
        np.array([_ratio(abs(t - s), s) for s, t in zip(before, after, strict=True)]),
        _angles(U, Us),
        _angles(Vh.mT, Vsh.mT),
        before,
        after,
    )
    return found, difference


def batch_errors(
    original: torch.Tensor, sparse: torch.Tensor, rank: int = 64, *, method: Algorithm = "auto"
) -> Errors:
    """`errors` of a batch (b, m, n), as of the matrix that has its matrices for diagonal blocks.

    Singular values and angles are those of `rank` of each, one matrix after the other.
    """
    pairs = [_compared(A, S, rank, method) for A, S in zip(original, sparse, strict=True)]
    found = [one for one, _ in pairs]
    A, S = original.flatten(0, 1), sparse.flatten(0, 1)
    return Errors(
        _ratio(max(one for _, one in pairs), max(float(one.original[0]) for one in found)),
        _ratio(frobenius_norm(A, S), frobenius_norm(A)),
        *(
            np.concatenate([getattr(one, name) for one in found])
            for name in (
                "singular_values", "left_angles", "right_angles", "original", "sparse",
            )
        ),
    )  # fmt: skip


def leading(values: NDArray[np.float64], most: int = LEADING) -> tuple[float, ...]:
    """The largest of singular values, descending; those of blocks come one block after another."""
    return tuple(sorted(values.tolist(), reverse=True)[:most])


def _ratio(error: float, norm: float) -> float:
    if norm == 0.0:
        return 0.0 if error == 0.0 else float("inf")
    return float(error / norm)


def _angles(first: torch.Tensor, second: torch.Tensor) -> NDArray[np.float64]:
    """Principal angles, ascending, between the spans of orthonormal columns (m, k).

    Small ones are found by their sines, which a cosine near 1 does not tell apart.
    """
    first, second = first.double(), second.double()
    overlap = first.mT @ second
    cosines = torch.linalg.svdvals(overlap).clamp(max=1.0)
    sines = torch.linalg.svdvals(second - first @ overlap).clamp(max=1.0).flip(-1)
    small = cosines.square() > 0.5
    angles: NDArray[np.float64] = (
        torch.where(small, torch.arcsin(sines), torch.arccos(cosines)).cpu().numpy()
    )
    return angles
