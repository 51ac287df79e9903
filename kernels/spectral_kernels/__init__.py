"""Arrays in, arrays out: the kernels of spectrum-preserving sparsification.

`sparsify` scores the entries of a matrix, solves its budget, and keeps, draws and rescales entries;
`sparsify_many` does so for many matrices in one call. `spectral_kernels.spectra` has singular
values, norms and spectral densities. Arrays are NumPy, torch or CuPy; where one lies decides which
kernels run. `reference` is all of it again in NumPy and plain Python, and `call.torch_operator` is
`sparsify` as an operator that torch's compilers know.

On the CPU kernels are compiled when they are first called, some 20 s in all, and kept on disk for
the processes that follow: in the folder that NUMBA_CACHE_DIR names, else beside the package, else
in the user's cache. Where none can be written each process compiles them, and a warning says so.
A process that is forked after the import, such as a worker of torch's DataLoader, runs them on one
thread; one that is spawned has its own threads.
"""

from spectral_kernels.backends.protocol import module_of
from spectral_kernels.call.arguments import check_weight, entries_to_keep
from spectral_kernels.call.curve import MagnitudeCurve, magnitude_curve
from spectral_kernels.call.many import sparsify_many
from spectral_kernels.call.result import Sparse
from spectral_kernels.call.sparsify import histogram, sparsify
from spectral_kernels.reference.laws import (
    GROUP_NAMES,
    LAW_NAMES,
    SCORE_NAMES,
    GroupName,
    Law,
    LawName,
    ScoreName,
    named_law,
)
from spectral_kernels.reference.patterns import (
    NM,
    Blocks,
    Pattern,
    check_divides,
    parse_pattern,
    pattern_sparsity,
)
from spectral_kernels.reference.stream import draws, stream_id

__all__ = [
    "GROUP_NAMES",
    "LAW_NAMES",
    "NM",
    "SCORE_NAMES",
    "Blocks",
    "GroupName",
    "Law",
    "LawName",
    "MagnitudeCurve",
    "Pattern",
    "ScoreName",
    "Sparse",
    "check_divides",
    "check_weight",
    "draws",
    "entries_to_keep",
    "histogram",
    "magnitude_curve",
    "module_of",
    "named_law",
    "parse_pattern",
    "pattern_sparsity",
    "sparsify",
    "sparsify_many",
    "stream_id",
]
