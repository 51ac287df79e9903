"""Singular values, norms and spectral densities, written once over the array API."""

from spectral_kernels.spectra.density import SpectralDensity, spectral_density
from spectral_kernels.spectra.norms import NormEstimate, spectral_error, spectral_norm
from spectral_kernels.spectra.precision import full_precision
from spectral_kernels.spectra.svd import (
    SVD_STREAM,
    SVDResult,
    default_blocks,
    randomized_svd,
    singular_values,
)

__all__ = [
    "SVD_STREAM",
    "NormEstimate",
    "SVDResult",
    "SpectralDensity",
    "default_blocks",
    "full_precision",
    "randomized_svd",
    "singular_values",
    "spectral_density",
    "spectral_error",
    "spectral_norm",
]
