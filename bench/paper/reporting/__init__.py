"""Measured numbers, their statistics, and the files they are written to."""
