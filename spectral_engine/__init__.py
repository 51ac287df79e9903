"""Spectrum-preserving sparsification of neural networks.

import spectral_engine as se

out = se.sparsify(weight, method="randomized", sparsity=0.9)
report = se.prune(model, method="magnitude", sparsity=0.9)
err = se.errors(weight, out.weight)
spec = se.spectrum(weight, rank=64)
print(se.spectra(model))
"""

from spectral_engine.comparison import Comparison, LayerErrors, compare
from spectral_engine.errors import Errors, errors
from spectral_engine.files import prune_file
from spectral_engine.layers import Skipped
from spectral_engine.pruning import prune
from spectral_engine.report import LayerReport, PruneReport
from spectral_engine.single import Sparsified, SparsifyReport, sparsify
from spectral_engine.spectra import Spectrum, spectra, spectrum
from spectral_engine.spectra_table import LayerSpectrum, Spectra
from spectral_engine.spectral_statistics import PowerLaw, Statistics
from spectral_engine.tracker import SpectrumTracker

__version__ = "0.1.0"
__all__ = [
    "Comparison",
    "Errors",
    "LayerErrors",
    "LayerReport",
    "LayerSpectrum",
    "PowerLaw",
    "PruneReport",
    "Skipped",
    "Sparsified",
    "SparsifyReport",
    "Spectra",
    "Spectrum",
    "SpectrumTracker",
    "Statistics",
    "__version__",
    "compare",
    "errors",
    "prune",
    "prune_file",
    "sparsify",
    "spectra",
    "spectrum",
]
