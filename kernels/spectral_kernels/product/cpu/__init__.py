"""Numba kernels that pack a matrix and multiply by a packed one."""
