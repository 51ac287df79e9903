"""Arrays in, arrays out: the kernels of spectrum-preserving sparsification.

`sparsify` is the pipeline score, budget, draw, value, `sparsify_many` the same of many layers at
once, `library` the same as an operator that torch's compilers know. `randomized_svd` gives the low
rank that spectral scores are made of; `oracle` is the NumPy reference of all of it. Arrays are
NumPy, torch or CuPy; `backend` chooses the kernels from the array's type and device.
"""

from spectral_kernels.call.arguments import check_weight, entries_to_keep
from spectral_kernels.call.many import sparsify_many
from spectral_kernels.call.result import Sparse
from spectral_kernels.call.sparsify import histogram, sparsify
from spectral_kernels.reference.laws import GROUP_NAMES, LAW_NAMES, SCORE_NAMES
from spectral_kernels.reference.stream import stream_id

__all__ = [
    "GROUP_NAMES",
    "LAW_NAMES",
    "SCORE_NAMES",
    "Sparse",
    "check_weight",
    "entries_to_keep",
    "histogram",
    "sparsify",
    "sparsify_many",
    "stream_id",
]
