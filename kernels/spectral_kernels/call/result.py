"""What a call made, and what is left to be read from the device."""

from typing import Any

import numpy as np

from spectral_kernels.backends.deferred import Deferred
from spectral_kernels.backends.protocol import Kept


class Sparse:
    """What `sparsify` made of one matrix.

    On a device, nnz and c are read when they are asked for, which waits for it; errors that
    `check=False` put off are raised then.

    Attributes:
        weight: the sparse array, of the kind, dtype and shape of the input.
        asked: the entries that the budget asked for.
        missed: whether the draw kept another number than chance explains (more than six standard
            deviations and 1 %), though enough entries have a score over 0: their scores are so far
            apart that float32 has no room for all. False where it was not looked at: on a device
            with `check=False` or in a capture, and under a pattern.

    >>> import numpy as np
    >>> from spectral_kernels import sparsify
    >>> sparse = sparsify(np.array([[3.0, -1.0], [0.5, 2.0]], np.float32), sparsity=0.5)
    >>> sparse
    Sparse(weight of shape (2, 2) and float32)
    >>> sparse.nnz, sparse.c
    (2, 2.0)
    >>> sparse.asked, sparse.missed
    (2, False)
    """

    def __init__(
        self, weight: Any, kept: Kept, deferred: Deferred, asked: int, missed: bool = False
    ) -> None:
        self.weight, self.asked, self.missed = weight, asked, missed
        self._kept, self._deferred = kept, deferred

    def check(self) -> None:
        """Wait for the device, and raise what `check=False` put off; see `sparsify`.

        Raises:
            ValueError: the first error of the data that occurred.
        """
        self._deferred.raise_pending()

    @property
    def nnz(self) -> int:
        """The number of nonzeros."""
        self._deferred.raise_pending()
        return int(self._kept.nnz)

    @property
    def c(self) -> float:
        """The constant of p = min(1, c g(s)); the median over rows where each row is a group.

        g is s or s^2, or that of "hybrid" and "am07" in `reference.laws`. Where nothing is drawn it
        is the threshold itself: the least score kept; of blocks, the least score of a block. It is
        nan where N of every M are kept, since each group has its own.
        """
        self._deferred.raise_pending()
        return float(np.median(self._kept.constants()))

    def __repr__(self) -> str:
        """The shape alone: to read the counts would wait for the device."""
        return f"Sparse(weight of shape {tuple(self.weight.shape)} and {self.weight.dtype})"
