"""Singular values and spectra beside what others compute them with."""
