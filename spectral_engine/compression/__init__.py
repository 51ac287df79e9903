"""Pruned networks that are as small as their zeros allow: in files, in memory, in transformers."""
