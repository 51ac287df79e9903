"""Pruning in the course of a training."""
