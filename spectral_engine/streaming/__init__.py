"""Calibrated pruning of a folder that is larger than memory: a block at a time, and resumed."""
