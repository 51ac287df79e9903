"""Spectrum-preserving sparsification of neural networks.

import spectral_engine as se

out = se.sparsify(weight, method="randomized", sparsity=0.9)
report = se.prune(model, method="magnitude", sparsity=0.9)
err = se.errors(weight, out.weight)
"""

from spectral_engine.errors import Errors, errors
from spectral_engine.files import prune_file
from spectral_engine.layers import Skipped
from spectral_engine.pruning import prune
from spectral_engine.report import LayerReport, PruneReport
from spectral_engine.single import Sparsified, SparsifyReport, sparsify

__version__ = "0.1.0"
__all__ = [
    "Errors",
    "LayerReport",
    "PruneReport",
    "Skipped",
    "Sparsified",
    "SparsifyReport",
    "__version__",
    "errors",
    "prune",
    "prune_file",
    "sparsify",
]
