"""Tensors of which each process holds a part: DTensors, as FSDP2 and tensor parallelism make them.

What is done to a weight is done to the whole of it, so that no result hangs on how it is sharded:
it is gathered, and each process takes its own part of what comes out. Entries may be spread in any
way that a device mesh knows: by rows, by columns, unevenly, over several dimensions of the mesh.

To gather is a collective: every process of the mesh makes the same calls in the same order.
"""

import sys
from typing import Any

import torch
from torch import nn


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a DTensor, of which this process may hold but a part."""
    kinds = sys.modules.get("torch.distributed.tensor")  # without it there is none
    return kinds is not None and isinstance(tensor, kinds.DTensor)


def obstacle_to_gathering(tensor: Any) -> str | None:
    """Why a DTensor cannot be gathered, as the end of a sentence about it; None if it can."""
    if tensor.device_mesh.get_coordinate() is None:
        return "lies on a device mesh that this process is no part of"
    if any(placement.is_partial() for placement in tensor.placements):
        return f"is a DTensor of sums that are not yet made, {tensor.placements}"
    return None


def here(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor, a view of its memory, detached; all of a plain one."""
    local: Any = tensor.detach()
    if not is_sharded(local):
        return tensor.detach()
    part: torch.Tensor = local.to_local()
    return part.detach()


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor, detached: of a plain one itself, of a sharded one a copy."""
    whole: Any = tensor.detach()
    if not is_sharded(whole):
        return tensor.detach()
    part, mesh = here(tensor), whole.device_mesh
    if part.dtype == torch.bool:  # not all backends send them
        return gathered(like(part.view(torch.uint8), tensor)).view(torch.bool)
    if part.device.type != mesh.device_type:  # offloaded to the host
        moved: Any = like(part.to(mesh.device_type), tensor)
        found: torch.Tensor = moved.full_tensor()
        return found.to(part.device)
    with torch.no_grad():
        found = whole.full_tensor()
    return found.clone() if found.data_ptr() == part.data_ptr() else found


def own_part(whole: torch.Tensor, sharded: torch.Tensor) -> torch.Tensor:
    """This process's part of a whole tensor, as it holds that of another of the same shape.

    Args:
        whole: plain, the same on every process. sharded: which it is shared out like.

    Returns:
        Shaped as `here(sharded)`; `whole` itself where that is plain.
    """
    if not is_sharded(sharded):
        return whole
    from torch.distributed.tensor import DTensor, Replicate  # noqa: PLC0415  (loaded already)

    dtensor: Any = sharded
    mesh, device = dtensor.device_mesh, whole.device
    sent = whole.view(torch.uint8) if whole.dtype == torch.bool else whole
    every = DTensor.from_local(
        sent.to(mesh.device_type), mesh, [Replicate()] * mesh.ndim, run_check=False
    )
    part: torch.Tensor = every.redistribute(placements=dtensor.placements).to_local()
    return part.to(device).view(whole.dtype)


def like(part: torch.Tensor, sharded: torch.Tensor) -> torch.Tensor:
    """A tensor sharded as another one, of the parts that each process has; `part` if that is plain.

    Nothing is sent.
    """
    if not is_sharded(sharded):
        return part
    from torch.distributed.tensor import DTensor  # noqa: PLC0415  (loaded already)

    dtensor: Any = sharded
    return DTensor.from_local(
        part, dtensor.device_mesh, dtensor.placements, run_check=False, shape=dtensor.shape,
        stride=dtensor.stride(),
    )  # fmt: skip


def outline(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same shape and dtype, detached: itself, or for a sharded one without values.

    It costs no memory and sends nothing, and tells what a view of the whole will look like.
    """
    if not is_sharded(tensor):
        return tensor.detach()
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def settle(model: nn.Module) -> None:
    """Have every module hold its parameters as they are sharded.

    Between passes FSDP2 may leave gathered copies in their place, of which nothing is kept.
    """
    kinds = sys.modules.get("torch.distributed.fsdp")
    if kinds is None or not hasattr(kinds, "FSDPModule"):
        return
    for module in model.modules():
        if isinstance(module, kinds.FSDPModule):
            module.reshard()
