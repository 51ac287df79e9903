"""Simulated texts: what a language model writes itself, or tokens drawn one by one.

What a language model writes has the statistics that it was trained on, so that it calibrates
nearly as well as real text. A model that cannot write, such as an encoder, reads tokens that are
drawn with equal probability.
"""

from typing import Any

import torch
from torch import Tensor, nn


def can_write(model: nn.Module) -> bool:
    """Whether it is a language model of transformers that continues a text by itself."""
    able = getattr(model, "can_generate", None)
    return (
        callable(able)
        and bool(able())
        and not getattr(getattr(model, "config", None), "is_encoder_decoder", False)
        and getattr(model, "main_input_name", None) == "input_ids"
    )


def written(model: Any, count: int, length: int, seed: int) -> Tensor:
    """Tokens (count, length) that the model writes from its mark of the beginning on.

    It must be in evaluation mode, and the caller keeps the random state.
    """
    mark = getattr(model.config, "bos_token_id", None)
    mark = mark if isinstance(mark, int) else 0
    first = torch.full((count, 1), mark, device=next(model.parameters()).device)
    torch.manual_seed(seed)
    found: Tensor = model.generate(
        first, attention_mask=torch.ones_like(first), do_sample=True, temperature=1.0, top_k=0,
        top_p=1.0, max_new_tokens=length - 1, min_new_tokens=length - 1, pad_token_id=mark,
    )  # fmt: skip
    return found
