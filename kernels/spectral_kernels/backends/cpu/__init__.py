"""CPU kernels, compiled by Numba: fused, parallel over rows and column blocks, vectorised."""
