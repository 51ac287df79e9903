"""The gradients of masked parameters: plain, of an embedding's rows, sharded."""

from typing import Any

import torch
from torch import nn

from spectral_engine.distributed.shards import here, is_sharded, like
from spectral_engine.masking.bits import words


def sharded_alike(gradient: Any, parameter: Any) -> bool:
    """Whether a sharded gradient is shared out as its parameter is."""
    return is_sharded(parameter) and bool(gradient.placements == parameter.placements)


def without_pruned(gradient: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """A gradient with zeros where nothing is kept.

    Args:
        gradient: dense, of an embedding's rows, or sharded.
        kept: boolean, of its shape, sharded as it is.
    """
    if gradient.layout == torch.sparse_coo:  # of an embedding: whole rows
        gradient = gradient.coalesce()
        rows = gradient.indices()[0]
        values = gradient.values().masked_fill(~kept[rows], 0)
        return torch.sparse_coo_tensor(
            gradient.indices(), values, gradient.shape, check_invariants=False, is_coalesced=True
        )
    if gradient.requires_grad:  # to be differentiated again
        return gradient.masked_fill(~kept, 0)
    if is_sharded(gradient):
        part = words(here(gradient)) * here(kept)
        return like(part.view(gradient.dtype), gradient)
    return (words(gradient) * kept).view(gradient.dtype)


def clean_gradient(parameter: nn.Parameter, kept: torch.Tensor) -> None:
    """Zero what a backward pass before the masking has left for entries that are pruned now.

    kept: boolean, of the entries of the parameter that this process holds.
    """
    gradient: Any = parameter.grad
    if gradient is None:
        return
    if is_sharded(gradient):
        if not sharded_alike(gradient, parameter):
            sharded: Any = parameter
            gradient = parameter.grad = gradient.redistribute(placements=sharded.placements)
        words(here(gradient)).mul_(kept)
        return
    if gradient.layout == torch.strided:
        words(gradient.detach()).mul_(kept)
    else:
        parameter.grad = without_pruned(gradient.detach(), kept)
