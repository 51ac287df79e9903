"""Products with a sparse matrix: torch's sparse tensors, scipy.sparse and cupyx.scipy.sparse.

None of the three is imported: a matrix is told by its methods.
"""

from collections.abc import Callable
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from spectral_kernels.spectra._arrays import Array, Namespace, to_host, working_dtype

Product = Callable[[Array], Array]

#: Layouts of torch that `sparse_products` multiplies with.
_LAYOUTS = ("torch.sparse_coo", "torch.sparse_csr", "torch.sparse_csc")


def is_sparse(S: Any) -> bool:
    """Whether `S` is a torch tensor of a sparse layout, or has the CSR form of scipy's classes."""
    if array_api_compat.is_torch_array(S):
        return str(S.layout) != "torch.strided"
    return hasattr(S, "tocsr")


def sparse_products(
    xp: Namespace, S: Any, like: Array, name: str
) -> tuple[Product, Product, NDArray[np.floating]]:
    """x -> S x, y -> S^T y and max |S_ij|, in the precision of `like` and beside its library."""
    if array_api_compat.is_torch_array(S):
        S = S.detach()
        layout = str(S.layout)
        if layout not in _LAYOUTS or S.ndim != 2 or S.dense_dim() != 0:
            raise TypeError(
                f"{name}: expected a sparse matrix of layout {' or '.join(_LAYOUTS)}; got shape "
                f"{tuple(S.shape)}, layout {layout}"
            )
        coordinates = layout == "torch.sparse_coo"
        S = S.coalesce() if coordinates else S.to_sparse_csr()
        entries = S.values()
    else:
        S = S.tocsr()
        entries = S.data
    library = array_api_compat.array_namespace(entries)
    if library is not xp:
        raise TypeError(
            f"{name}: expected a sparse matrix of the library of A, {xp.__name__}; got "
            f"{type(S).__module__}.{type(S).__qualname__}"
        )
    working_dtype(xp, entries.dtype, name)
    largest = np.abs(to_host(xp.astype(entries, like.dtype))).max(initial=0.0)
    if not np.isfinite(largest):
        raise ValueError(f"{name}: expected finite entries; got NaN or infinity")
    if array_api_compat.is_torch_array(entries):
        S = S.to(like.dtype)
        # A product with a transposed CSR tensor takes ten times as long as one with CSR.
        transposed = S.mT if coordinates else S.mT.to_sparse_csr()
    else:
        S = S.astype(like.dtype)
        transposed = S.T
    return S.__matmul__, transposed.__matmul__, largest
