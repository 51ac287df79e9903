"""CPU kernels, compiled by Numba: fused, parallel over rows and chunks of columns, vectorised."""
