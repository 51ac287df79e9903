"""Reading a parametrized weight without changing the model that holds it.

`module.weight` of a parametrized module runs the parametrization: spectral_norm moves its buffers,
dropout of weights draws random numbers, others count how often they ran. A training that is watched
would then give other weights than one that is not. Here a copy runs in the module's place.
"""

import copy
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain

import numpy as np
import torch
from torch import nn

#: What every module's `__dict__` holds for torch's own use: copied with the module.
_TORCH = frozenset(vars(nn.Module()))


def computed_weight(module: nn.Module, name: str) -> torch.Tensor:
    """What a parametrized weight is now, as the next forward pass would compute it.

    Nothing that can be seen from outside changes: no parameter, buffer, attribute or training flag
    of the model, no random state of torch, NumPy or Python, and nothing that
    `torch.nn.utils.parametrize.cached` keeps. What a hook of the parametrization does to objects
    that are no part of it is done once more.

    Args:
        module: a module of which `torch.nn.utils.parametrize.is_parametrized(module, name)`.
        name: what the weight is called there.

    Returns:
        The weight, detached, in memory of its own.
    """
    parametrization = getattr(module, "parametrizations")[name]  # noqa: B009 (typed as a Tensor)
    twin = _copied(parametrization)
    with random_state_kept(twin), torch.no_grad():
        weight: torch.Tensor = twin()
    return weight.detach()


def _copied(module: nn.Module) -> nn.Module:
    """A copy that shares no memory with a module, also where its attributes know no deepcopy."""
    memo: dict[int, object] = {}
    for part in module.modules():
        # A non-leaf tensor has no deepcopy; and a parameter's own leaves its Python class behind.
        for tensor in chain(part._parameters.values(), part._buffers.values()):
            if tensor is not None and id(tensor) not in memo:
                memo[id(tensor)] = _twin(tensor)
        for name, value in vars(part).items():
            if name not in _TORCH and id(value) not in memo:
                _copy_attribute(value, memo)
    return copy.deepcopy(module, memo)


def _twin(tensor: torch.Tensor) -> torch.Tensor:
    own = tensor.detach().clone()
    return nn.Parameter(own, requires_grad=False) if isinstance(tensor, nn.Parameter) else own


def _copy_attribute(value: object, memo: dict[int, object]) -> None:
    """Note in `memo` what stands for an attribute; one that cannot be copied stands for itself."""
    if isinstance(value, nn.Module):
        return  # another module, which comes with the copy
    if isinstance(value, torch.Tensor):
        memo[id(value)] = value.detach().clone()
    elif isinstance(value, torch.Generator):
        memo[id(value)] = value.clone_state()
    else:
        try:
            copy.deepcopy(value, memo)
        except Exception:  # a lock, a file: whatever the copy of it raises
            memo[id(value)] = value


@contextmanager
def random_state_kept(module: nn.Module) -> Iterator[None]:
    """The random states of Python, NumPy, torch and the module's devices, set back afterwards."""
    used = {tensor.device for tensor in chain(module.parameters(), module.buffers())}
    devices: dict[str, list[torch.device]] = {}
    for device in used:
        if device.type not in ("cpu", "meta"):
            devices.setdefault(device.type, []).append(device)
    of_python = random.getstate()
    of_numpy = np.random.get_state()  # noqa: NPY002 (the global one, which others use)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for kind, some in devices.items():
            stack.enter_context(torch.random.fork_rng(devices=some, device_type=kind))
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)  # noqa: NPY002
