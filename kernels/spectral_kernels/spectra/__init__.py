"""Singular values and norms, written once over the array API."""
