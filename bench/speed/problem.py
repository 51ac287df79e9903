"""One matrix, and all that the implementations of an operation are given with it."""

from functools import cached_property
from typing import Any

import numpy as np
import torch
from spectral_kernels import entries_to_keep, sparsify
from spectral_kernels.backends.choose import backend_for
from spectral_kernels.backends.protocol import Matrix

RANK = 64


def rank_of(size: int) -> int:
    """The rank of the factors of a (size, size) matrix."""
    return min(RANK, size)


class Problem:
    """A (size, size) of standard normal entries, and float32 factors of a low rank as its score."""

    def __init__(self, size: int, dtype: str, sparsity: float, device: str) -> None:
        generator = torch.Generator().manual_seed(size)
        self.rank = rank_of(size)
        self.A = torch.randn((size, size), generator=generator)
        self.A = self.A.to(getattr(torch, dtype)).to(device)
        self.left = torch.randn((size, self.rank), generator=generator).to(device)
        self.right = torch.randn((self.rank, size), generator=generator).to(device)
        self.sparsity = sparsity
        self.kept = entries_to_keep(size * size, sparsity)
        self.kept_per_row = entries_to_keep(size, sparsity)
        self.backend = backend_for(self.A)
        self.matrix: Matrix = self.backend.matrix(self.A)

    @cached_property
    def values(self) -> np.ndarray:
        """The matrix as the oracle takes it: bfloat16 numbers are carried as float32."""
        return self.A.cpu().float().numpy()

    @cached_property
    def factors(self) -> tuple[np.ndarray, np.ndarray]:
        """The factors as the oracle takes them."""
        return self.left.cpu().numpy(), self.right.cpu().numpy()

    @cached_property
    def existing(self) -> Any:
        """An output array made beforehand, and written once, so that its pages are mapped."""
        return self.backend.empty_like(self.A).copy_(self.A)

    @cached_property
    def mask(self) -> torch.Tensor:
        """Which entries a magnitude threshold keeps, boolean."""
        return self.A.abs() >= self.threshold

    @cached_property
    def bits(self) -> torch.Tensor:
        """The mask packed as `reference.packed` says; its bits in the order of the matrix."""
        weights = 2 ** torch.arange(8, device=self.A.device)
        return (self.mask.view(-1, 8) * weights).sum(1).to(torch.uint8)

    @cached_property
    def wide(self) -> torch.Tensor:
        """The matrix in float32."""
        return self.A.float()

    @cached_property
    def c(self) -> float:
        """c of p = min(1, c |A|)."""
        return sparsify(self.A, sparsity=self.sparsity, law="l1").c

    @cached_property
    def threshold(self) -> float:
        """The smallest |A| that is kept."""
        return sparsify(self.A, sparsity=self.sparsity).c
