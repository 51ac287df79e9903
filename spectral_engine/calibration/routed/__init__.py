"""Inputs of layers that each see a part of what their module is given."""
