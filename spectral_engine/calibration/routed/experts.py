"""The inputs of experts held as one tensor, as transformers routes and calls them.

An experts module of transformers is called with hidden states (tokens, n), and with the experts
(tokens, k) that each token goes to. `gate_up_proj` (experts, 2 i, n) sees the tokens of each
expert; `down_proj` (experts, n, i) what the module's own gate makes of the products, which is
computed here again, since it never leaves the forward.

Rows of all experts are held as one tensor, sorted by nothing, with the expert's number as one more
column, so that they are counted and sampled as those of any other layer. A part that is added to
the sums holds as many rows for each expert as the one with the most has, filled with zeros: the
second moments of an expert with few tokens are then small by the same factor in every entry, which
changes neither its mask nor its refit.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional

INTO, OUT_OF = "gate_up_proj", "down_proj"
#: The first two arguments of a call.
ROUTED = ("hidden_states", "top_k_index")
#: Entries of a part, with the zeros that fill it.
_CHUNK = 1 << 24


def is_routed(module: Any) -> bool:
    """Whether a module is one of transformers' experts, called with hidden states and routes."""
    return (
        isinstance(module, nn.Module)
        and type(module).__name__.endswith("Experts")
        and all(getattr(module._parameters.get(name), "ndim", 0) == 3 for name in (INTO, OUT_OF))
        and callable(getattr(module, "_apply_gate", None))
        and getattr(module, "has_gate", False) is True
        and not getattr(module, "has_post_expert_norm", True)
    )


def routed(hidden: torch.Tensor, experts: torch.Tensor, count: int) -> torch.Tensor:
    """The rows that each expert sees, with its number as the last column: (rows, n + 1).

    Args:
        hidden: (tokens, n). experts: (tokens, k), which each token goes to.
        count: of experts; a number beyond says that a token goes to none.
    """
    tokens, places = torch.where(experts < count)
    numbers, rows = experts[tokens, places], hidden[tokens]
    rows = rows if rows.dtype == torch.float64 else rows.float()  # holds any number of an expert
    return torch.cat([rows, numbers[:, None].to(rows.dtype)], 1)


def apart(module: nn.Module) -> Any:
    """A module of the same weights whose own modules, such as its activation, are copies.

    A call of these is no call that the model makes: hooks and replays do not see it.
    """
    found = copy.copy(module)
    found._modules = copy.deepcopy(module._modules)
    return found


def between(module: Any, rows: torch.Tensor) -> torch.Tensor:
    """What `down_proj` sees, (rows, i + 1), of what `gate_up_proj` does, (rows, n + 1).

    Args:
        module: the experts, `apart`.
    """
    numbers, out = rows[:, -1].long(), []
    bias = getattr(module, f"{INTO}_bias", None)
    places = []
    for expert in set(numbers.tolist()):
        place = (numbers == expert).nonzero().flatten()
        weight = module._parameters[INTO][expert]
        weight = weight.T if getattr(module, "is_transposed", False) else weight
        x = rows[place, :-1].to(weight.dtype)
        product = functional.linear(x, weight, None if bias is None else bias[expert])
        gated = module._apply_gate(product).to(rows.dtype)
        out.append(torch.cat([gated, rows[place, -1:]], 1))
        places.append(place)
    if not out:
        return rows.new_zeros(0, module._parameters[OUT_OF].shape[-1] + 1)
    return torch.cat(out)[torch.cat(places).argsort()]


def by_expert(rows: torch.Tensor, count: int) -> Iterator[torch.Tensor]:
    """Parts (experts, N, n) of rows (rows, n + 1), filled with zeros.

    Args:
        rows: with the expert's number as the last column. count: of experts.
    """
    numbers = rows[:, -1].long()
    order = numbers.argsort(stable=True)
    counts = numbers.bincount(minlength=count)
    starts = counts.cumsum(0) - counts
    most, n = int(counts.max()) if len(rows) else 0, rows.shape[1] - 1
    step = max(1, _CHUNK // (count * n))
    for first in range(0, most, step):
        length = min(step, most - first)
        within = torch.arange(first, first + length, device=rows.device)
        there = within < counts[:, None]
        places = (starts[:, None] + within).clamp(max=len(rows) - 1)
        part = rows[order[places]][..., :-1]
        yield torch.where(there[..., None], part, 0.0)
