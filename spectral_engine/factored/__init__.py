"""Layers that hold a sparse weight and two thin factors beside it."""
