"""The whole pipeline on the Triton kernels, against the CPU kernels: every law, bit for bit."""

from typing import Any

import numpy as np
import pytest
import torch
from spectral_kernels import LAW_NAMES, sparsify
from spectral_kernels.backends.gpu.backend import GPU, GPUBackend

# C g(x) may overflow; the interpreter's NumPy says so, a device would not.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def on_both(monkeypatch: pytest.MonkeyPatch, A: torch.Tensor, **arguments: Any) -> None:
    """Sparsify on both backends and compare."""
    expected = sparsify(A, **arguments)
    backend = GPU
    if DEVICE == "cpu":
        backend = GPUBackend(entries=4096)
        monkeypatch.setattr(
            "spectral_kernels.call.arguments.backend_for", lambda weight, argument="weight": backend
        )
    found = sparsify(A.to(DEVICE), **arguments)
    assert torch.equal(found.weight.cpu(), expected.weight)
    assert (found.nnz, found.c) == (expected.nnz, expected.c)
    assert 0 < found.nnz < A.numel()


def heavy_tailed(dtype: torch.dtype) -> torch.Tensor:
    """A matrix with ties, zeros and a few entries far above the rest."""
    values = np.random.default_rng(0).standard_t(3, (19, 150))
    values[np.abs(values) < 0.1] = 0.0
    return torch.tensor(values).to(dtype)


@pytest.mark.parametrize("group", ["tensor", "row"])
@pytest.mark.parametrize("law", LAW_NAMES)
def test_every_law(monkeypatch: pytest.MonkeyPatch, law: str, group: str) -> None:
    """A step of one backend that gives the budget another answer than the other's."""
    # The interpreter takes long for a budget, and each row has one.
    A = heavy_tailed(torch.float32)[: 3 if group == "row" else 19]
    on_both(
        monkeypatch, A, law=law, sparsity=0.7, group=group,
        rescale=law != "threshold", seed=11,
    )  # fmt: skip


@pytest.mark.parametrize("law", ["threshold", "hybrid"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, law: str) -> None:
    """Ties of a coarse dtype cut at another index, or a rounding that differs."""
    on_both(monkeypatch, heavy_tailed(dtype), law=law, sparsity=0.4, seed=12)


def test_errors_of_blocks_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts on the device of NaN and of negative weights, forgotten on the way to blocks."""
    A = torch.randn(8, 16)
    factors = (torch.randn(8, 2), torch.randn(2, 16))
    backend = GPU if DEVICE == "cuda" else GPUBackend(entries=4096)
    if DEVICE == "cpu":
        monkeypatch.setattr(
            "spectral_kernels.call.arguments.backend_for", lambda weight, argument="weight": backend
        )
    row = torch.ones(8)
    row[3] = -1.0
    with pytest.raises(ValueError, match="row: expected finite float32 values >= 0; got 1"):
        sparsify(A.to(DEVICE), sparsity=0.5, pattern="4x4", row=row.to(DEVICE))
    A[2, 3] = torch.nan
    with pytest.raises(ValueError, match="weight: expected finite entries"):
        sparsify(
            A.to(DEVICE), sparsity=0.5, pattern="4x4", score="principal",
            factors=tuple(factor.to(DEVICE) for factor in factors),
        )  # fmt: skip
