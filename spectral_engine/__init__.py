"""Spectrum-preserving sparsification of neural networks."""

__version__ = "0.1.0"
