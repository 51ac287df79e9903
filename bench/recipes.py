"""The parts of recipes by the names that labels, tables and results have for them."""

from collections.abc import Mapping

import spectral_engine as se

METHODS: Mapping[str, type[se.Method]] = {
    "magnitude": se.Magnitude,
    "randomized": se.Randomized,
    "principal": se.Principal,
    "aligned": se.Aligned,
}
#: Those that layers share.
BUDGETS: Mapping[str, type[se.Uniform | se.Global | se.ERK | se.Spectral]] = {
    "uniform": se.Uniform,
    "global": se.Global,
    "erk": se.ERK,
    "spectral": se.Spectral,
}
REFITS: Mapping[str, type[se.Refit]] = {
    "scale": se.Scale,
    "spectral": se.SpectralRefit,
    "least-squares": se.LeastSquares,
    "sparsegpt": se.SparseGPT,
    "alps": se.ALPS,
}
