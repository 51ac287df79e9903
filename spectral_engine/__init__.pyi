# The public names: type checkers and editors read this file, and __init__.py imports what it names.
# lazy_loader reads imports only where they are relative.
from .calibration.input_moments import InputMoments, calibrate
from .calibration.request import Calibration
from .cards.model_card import write_model_card
from .compression.conv1d import SparseConv1D
from .compression.convolution import SparseConv
from .compression.file import compress_file, decompress_file
from .compression.linear import SparseEmbedding, SparseLinear
from .compression.low_rank import SparseLowRankConv, SparseLowRankLinear
from .compression.model import compress, decompress
from .compression.report import CompressedWeight, CompressReport
from .datafree.simulate import Simulated, simulate
from .distributed.groups import share_work
from .factored.model import expect_low_rank, merge_low_rank
from .factored.modules import (
    LowRankConv1d,
    LowRankConv2d,
    LowRankConv3d,
    LowRankLinear,
)
from .layers.find import Skipped
from .layers.views import View, register_layer
from .masking.mask import Mask
from .masking.model import apply_masks, finalize, mask_zeros, masks
from .matrix.errors import Errors, errors
from .pruning.model import prune
from .pruning.report import CalibrationReport, LayerReport, PruneReport
from .recipe.budgets import ERK, Budget, Global, MaxError, Pattern, Spectral, Uniform
from .recipe.low_rank import LowRank
from .recipe.methods import Aligned, Magnitude, Method, Principal, Randomized
from .recipe.presets import PRESETS, preset
from .recipe.recipe import Recipe, load_recipes, save_recipes
from .recipe.reconstruction import Reconstruction
from .recipe.refits import (
    ALPS,
    BiasCorrection,
    LeastSquares,
    Refit,
    Scale,
    SparseGPT,
    SpectralRefit,
)
from .recipe.select import Select
from .reconstruction.norms import reestimate_norms
from .reconstruction.reconstruct import reconstruct
from .reconstruction.report import BlockReport, ReconstructReport
from .sparsifying.report import Sparsified, SparsifyReport, SparsityMissed
from .sparsifying.sparsify import sparsify
from .spectral.api import Spectrum, spectra, spectrum
from .spectral.compare import Comparison, LayerErrors, compare
from .spectral.power_law import PowerLaw
from .spectral.statistics import Statistics
from .spectral.table import LayerSpectrum, Spectra
from .spectral.tracker import SpectrumTracker
from .streaming.api import estimate_file, prune_file
from .streaming.estimate import Estimate
from .streaming.texts import token_batches
from .training.callbacks import lightning_callback, trainer_callback
from .training.pruner import Pruner, SpectrumCollapse
from .training.rounds import Round
from .training.schedules import Constant, Cubic, Iterative, OneShot, Schedule

__version__: str
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
