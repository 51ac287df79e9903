"""What a call made, and what is left to be read from the device."""

from typing import Any

import numpy as np

from spectral_kernels.backends.deferred import Flaws


class Sparse:
    """What `sparsify` made.

    weight: same kind, dtype and shape as the input. nnz: its number of nonzeros.
    c: of p = min(1, c g(s)), the median over rows where each row is a group; the threshold itself
    where nothing is drawn. g is s or s^2; for "hybrid" and "am07" that of `laws`, c in terms of s.
    nan where N of every M are kept, each group by its own; of blocks the threshold of their scores.

    From a device, nnz and c are read when they are asked for, which waits for it; what `check`
    left unread is raised then.
    """

    def __init__(self, weight: Any, nnz: Any, c: Any, flaws: Flaws | None = None) -> None:
        self.weight = weight
        self._nnz, self._c = nnz, c
        self._flaws = flaws or Flaws()

    def check(self) -> None:
        """Wait for the device, and refuse what `check=False` let pass: see `sparsify`."""
        self._flaws.settle()

    @property
    def nnz(self) -> int:
        """Number of nonzeros."""
        self._flaws.settle()
        return int(self._nnz)

    @property
    def c(self) -> float:
        """The constant of the law."""
        self._flaws.settle()
        return float(np.median(self._c() if callable(self._c) else self._c))

    def __repr__(self) -> str:
        """The shape alone: to read the counts would wait for the device."""
        return f"Sparse(weight of shape {tuple(self.weight.shape)} and {self.weight.dtype})"
