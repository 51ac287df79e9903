"""Multiply by a packed matrix, again and again."""

from typing import Any

from spectral_kernels.product import arrays
from spectral_kernels.product.deltas import Deltas, check_arrays
from spectral_kernels.product.packed import check
from spectral_kernels.product.positions import Positions
from spectral_kernels.product.unpacking import Held


class Operator:
    """y = x S^T of a packed matrix S (m, n); `prepare` makes it. It holds the packed arrays.

    Attributes:
        packed: what it multiplies by, in any form.
        shape: (m, n).
    """

    def __init__(self, packed: Held, run: Any, quick: Any = None) -> None:
        self.packed, self.shape, self._run, self._quick = packed, packed.shape, run, quick

    def __call__(self, x: Any) -> Any:
        """The product, as `torch.nn.functional.linear(x, S)` gives it.

        Products and sums are float32 (float64 where S is). An entry that is not stored is not
        multiplied: an infinity in x reaches only the rows that have an entry there. Every call
        gives the same bits, whatever the number of threads.

        Args:
            x: (..., n), float16, bfloat16, float32 or float64; of the packed arrays' kind and
                device.

        Returns:
            (..., m) in x's dtype.

        Raises:
            TypeError: another kind of array or dtype.
            ValueError: the last dimension is not n, or x is on another device.
        """
        if self._quick is not None:
            y = self._quick(x)
            if y is not None:
                return y
        arrays.dtype_of(x, "x")
        values = self.packed.values
        if arrays.is_torch(x) != arrays.is_torch(values):
            raise TypeError(f"x: expected {type(values)}, as what was packed; got {type(x)}")
        if x.ndim == 0 or x.shape[-1] != self.shape[1]:
            raise ValueError(f"x: expected (..., {self.shape[1]}); got {tuple(x.shape)}")
        if arrays.is_torch(x) and x.device != values.device:
            raise ValueError(f"x: expected on {values.device}; got {x.device}")
        return self._run(x)

    def rows(self, indices: Any) -> Any:
        """Rows (k, n) of the matrix, dense, where it is held as `Deltas`.

        Args:
            indices: int64 NumPy array (k,).

        Raises:
            TypeError: the matrix is held in another form, of which any row is at hand.
            IndexError: an index below 0 or beyond the last row.
        """
        if not isinstance(self.packed, Deltas):
            raise TypeError(f"packed: expected Deltas; got {type(self.packed).__name__}")
        low, high = (int(indices.min()), int(indices.max())) if indices.size else (0, 0)
        if low < 0 or high >= self.shape[0]:
            raise IndexError(f"indices: expected 0 to {self.shape[0] - 1}; got {low} to {high}")
        return self._run.rows(indices)


def prepare(packed: Held) -> Operator:
    """An operator that multiplies by a packed matrix.

    The bits of its products do not depend on the form in which the matrix is held.

    Args:
        packed: as `pack` returns it, `Deltas` or `Positions`. Its arrays are used as they are and
            must not change.

    Returns:
        The operator; its first call may compile.

    Raises:
        TypeError: an array of the wrong kind or dtype.
        ValueError: shapes, bits and offsets that do not belong together.

    >>> import numpy as np
    >>> from spectral_kernels.product.packed import pack
    >>> S = np.array([[0.0, 1.5, 0.0], [2.0, 0.0, -3.0]], np.float32)
    >>> prepare(pack(S))(np.array([1.0, 2.0, 3.0], np.float32))
    array([ 3., -7.], dtype=float32)
    """
    if isinstance(packed, Deltas):
        check_arrays(packed)
        from spectral_kernels.product.cpu.forms import far  # noqa: PLC0415 (starts the compiler)

        walker = far.Runner(packed)
        return Operator(packed, walker, walker.quick)
    if isinstance(packed, Positions):
        from spectral_kernels.product.cpu.forms import grouped  # noqa: PLC0415 (starts the compiler)

        groups = grouped.Runner(packed)
        return Operator(packed, groups, groups.quick)
    check(packed)
    if arrays.on_gpu(packed.values):
        from spectral_kernels.product.gpu import operator as gpu  # noqa: PLC0415 (needs Triton)

        return Operator(packed, gpu.Runner(packed))
    from spectral_kernels.product.cpu import operator as cpu  # noqa: PLC0415 (starts the compiler)

    runner = cpu.Runner(packed)
    return Operator(packed, runner, runner.quick)
