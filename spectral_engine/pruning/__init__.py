"""A whole model or file: planned, calibrated, sparsified, written."""
