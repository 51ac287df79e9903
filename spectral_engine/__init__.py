"""Spectrum-preserving sparsification of neural networks.

import spectral_engine as se

out = se.sparsify(weight, "randomized", 0.9)
report = se.prune(model, "magnitude", 0.9)
recipe = se.Recipe(se.Magnitude(), budget=se.ERK(0.9), refit=se.SpectralRefit())
err = se.errors(weight, out.weight)
spec = se.spectrum(weight, rank=64)
print(se.spectra(model))
"""

from spectral_engine.calibration.input_moments import InputMoments, calibrate
from spectral_engine.calibration.request import Calibration
from spectral_engine.cards.model_card import write_model_card
from spectral_engine.compression.conv1d import SparseConv1D
from spectral_engine.compression.convolution import SparseConv
from spectral_engine.compression.file import compress_file, decompress_file
from spectral_engine.compression.hub import transformers_hook as _transformers_hook
from spectral_engine.compression.linear import SparseEmbedding, SparseLinear
from spectral_engine.compression.low_rank import SparseLowRankConv, SparseLowRankLinear
from spectral_engine.compression.model import compress, decompress
from spectral_engine.compression.report import CompressedWeight, CompressReport
from spectral_engine.datafree.simulate import Simulated, simulate
from spectral_engine.distributed.groups import share_work
from spectral_engine.factored.model import expect_low_rank, merge_low_rank
from spectral_engine.factored.modules import (
    LowRankConv1d,
    LowRankConv2d,
    LowRankConv3d,
    LowRankLinear,
)
from spectral_engine.layers.find import Skipped
from spectral_engine.layers.views import View, register_layer
from spectral_engine.masking.mask import Mask
from spectral_engine.masking.model import apply_masks, finalize, mask_zeros, masks
from spectral_engine.matrix.errors import Errors, errors
from spectral_engine.pruning.model import prune
from spectral_engine.pruning.report import CalibrationReport, LayerReport, PruneReport
from spectral_engine.recipe.budgets import ERK, Budget, Global, MaxError, Pattern, Spectral, Uniform
from spectral_engine.recipe.low_rank import LowRank
from spectral_engine.recipe.methods import Aligned, Magnitude, Method, Principal, Randomized
from spectral_engine.recipe.presets import PRESETS, preset
from spectral_engine.recipe.recipe import Recipe, load_recipes, save_recipes
from spectral_engine.recipe.reconstruction import Reconstruction
from spectral_engine.recipe.refits import (
    ALPS,
    BiasCorrection,
    LeastSquares,
    Refit,
    Scale,
    SparseGPT,
    SpectralRefit,
)
from spectral_engine.recipe.select import Select
from spectral_engine.reconstruction.norms import reestimate_norms
from spectral_engine.reconstruction.reconstruct import reconstruct
from spectral_engine.reconstruction.report import BlockReport, ReconstructReport
from spectral_engine.sparsifying.report import Sparsified, SparsifyReport, SparsityMissed
from spectral_engine.sparsifying.sparsify import sparsify
from spectral_engine.spectral.api import Spectrum, spectra, spectrum
from spectral_engine.spectral.compare import Comparison, LayerErrors, compare
from spectral_engine.spectral.power_law import PowerLaw
from spectral_engine.spectral.statistics import Statistics
from spectral_engine.spectral.table import LayerSpectrum, Spectra
from spectral_engine.spectral.tracker import SpectrumTracker
from spectral_engine.streaming.api import estimate_file, prune_file
from spectral_engine.streaming.estimate import Estimate
from spectral_engine.streaming.texts import token_batches
from spectral_engine.training.callbacks import lightning_callback, trainer_callback
from spectral_engine.training.pruner import Pruner, SpectrumCollapse
from spectral_engine.training.rounds import Round
from spectral_engine.training.schedules import Constant, Cubic, Iterative, OneShot, Schedule

__version__ = "0.1.0"
__all__ = [
    "ALPS",
    "ERK",
    "PRESETS",
    "Aligned",
    "BiasCorrection",
    "BlockReport",
    "Budget",
    "Calibration",
    "CalibrationReport",
    "Comparison",
    "CompressReport",
    "CompressedWeight",
    "Constant",
    "Cubic",
    "Errors",
    "Estimate",
    "Global",
    "InputMoments",
    "Iterative",
    "LayerErrors",
    "LayerReport",
    "LayerSpectrum",
    "LeastSquares",
    "LowRank",
    "LowRankConv1d",
    "LowRankConv2d",
    "LowRankConv3d",
    "LowRankLinear",
    "Magnitude",
    "Mask",
    "MaxError",
    "Method",
    "OneShot",
    "Pattern",
    "PowerLaw",
    "Principal",
    "PruneReport",
    "Pruner",
    "Randomized",
    "Recipe",
    "ReconstructReport",
    "Reconstruction",
    "Refit",
    "Round",
    "Scale",
    "Schedule",
    "Select",
    "Simulated",
    "Skipped",
    "SparseConv",
    "SparseConv1D",
    "SparseEmbedding",
    "SparseGPT",
    "SparseLinear",
    "SparseLowRankConv",
    "SparseLowRankLinear",
    "Sparsified",
    "SparsifyReport",
    "SparsityMissed",
    "Spectra",
    "Spectral",
    "SpectralRefit",
    "Spectrum",
    "SpectrumCollapse",
    "SpectrumTracker",
    "Statistics",
    "Uniform",
    "View",
    "__version__",
    "apply_masks",
    "calibrate",
    "compare",
    "compress",
    "compress_file",
    "decompress",
    "decompress_file",
    "errors",
    "estimate_file",
    "expect_low_rank",
    "finalize",
    "lightning_callback",
    "load_recipes",
    "mask_zeros",
    "masks",
    "merge_low_rank",
    "preset",
    "prune",
    "prune_file",
    "reconstruct",
    "reestimate_norms",
    "register_layer",
    "save_recipes",
    "share_work",
    "simulate",
    "sparsify",
    "spectra",
    "spectrum",
    "token_batches",
    "trainer_callback",
    "write_model_card",
]

_transformers_hook.install()
