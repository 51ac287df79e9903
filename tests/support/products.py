"""What tests of products share: matrices, and the oracle's products."""

import numpy as np
import torch
from spectral_kernels.product import oracle

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def sparse(shape: tuple[int, ...], keep: float, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    A = np.where(rng.random(shape) < keep, rng.standard_normal(shape), 0.0)
    return torch.tensor(A).to(dtype)


def expected_of(A: torch.Tensor, X: torch.Tensor) -> torch.Tensor:
    """The oracle's product; bfloat16, which NumPy does not know, is exact in float32."""
    wide = [t.float() if t.dtype == torch.bfloat16 else t for t in (A, X)]
    return torch.tensor(oracle.product(*(t.numpy() for t in wide))).to(X.dtype)


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    size = {2: torch.int16, 4: torch.int32, 8: torch.int64}[expected.element_size()]
    nan = found.isnan() & expected.isnan()
    assert torch.equal(found.view(size).where(~nan, 0), expected.view(size).where(~nan, 0))
