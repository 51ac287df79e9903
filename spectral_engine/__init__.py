"""Spectrum-preserving sparsification of neural networks.

import spectral_engine as se

out = se.sparsify(weight, method="randomized", sparsity=0.9)
report = se.prune(model, method="magnitude", sparsity=0.9)
err = se.errors(weight, out.weight)
spec = se.spectrum(weight, rank=64)
print(se.spectra(model))
"""

from spectral_engine.calibration.input_moments import InputMoments, calibrate
from spectral_engine.layers.find import Skipped
from spectral_engine.layers.views import View, register_layer
from spectral_engine.masking.mask import Mask
from spectral_engine.masking.model import apply_masks, finalize, mask_zeros, masks
from spectral_engine.matrix.errors import Errors, errors
from spectral_engine.matrix.sparsify import Sparsified, SparsifyReport, sparsify
from spectral_engine.pruning.file import prune_file
from spectral_engine.pruning.model import prune
from spectral_engine.pruning.report import LayerReport, PruneReport
from spectral_engine.spectral.api import Spectrum, spectra, spectrum
from spectral_engine.spectral.compare import Comparison, LayerErrors, compare
from spectral_engine.spectral.statistics import PowerLaw, Statistics
from spectral_engine.spectral.table import LayerSpectrum, Spectra
from spectral_engine.spectral.tracker import SpectrumTracker
from spectral_engine.training.pruner import Pruner, Round, SpectrumCollapse
from spectral_engine.training.schedules import Constant, Cubic, Iterative, OneShot, Schedule

__version__ = "0.1.0"
__all__ = [
    "Comparison",
    "Constant",
    "Cubic",
    "Errors",
    "InputMoments",
    "Iterative",
    "LayerErrors",
    "LayerReport",
    "LayerSpectrum",
    "Mask",
    "OneShot",
    "PowerLaw",
    "PruneReport",
    "Pruner",
    "Round",
    "Schedule",
    "Skipped",
    "Sparsified",
    "SparsifyReport",
    "Spectra",
    "Spectrum",
    "SpectrumCollapse",
    "SpectrumTracker",
    "Statistics",
    "View",
    "__version__",
    "apply_masks",
    "calibrate",
    "compare",
    "errors",
    "finalize",
    "mask_zeros",
    "masks",
    "prune",
    "prune_file",
    "register_layer",
    "sparsify",
    "spectra",
    "spectrum",
]
