"""Bring back what was changed, should anything go wrong before the end."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from spectral_engine.distributed.shards import here

#: Keeps a tensor as it is, once.
Save = Callable[[torch.Tensor], None]


@contextmanager
def restored_on_error(done: list[Any]) -> Iterator[Save]:
    """Gives a function that saves a tensor as it is; after an error those saved are so again.

    They are kept in a temporary file, not in memory, and saved once each. `done`, of what was
    changed, is emptied then.
    """
    with tempfile.TemporaryFile() as file:
        saved: dict[int, tuple[torch.Tensor, int]] = {}

        def save(tensor: torch.Tensor) -> None:
            if id(tensor) not in saved:
                place = file.seek(0, 2)
                values = here(tensor).contiguous().flatten().view(torch.uint8)
                file.write(values.cpu().numpy().data)
                saved[id(tensor)] = tensor, place

        try:
            yield save
        except BaseException:
            for tensor, place in saved.values():
                file.seek(place)
                own = here(tensor)
                held = np.frombuffer(file.read(own.nbytes), np.uint8).copy()
                values = torch.from_numpy(held).view(own.dtype).reshape(own.shape)
                own.copy_(values)
            done.clear()
            raise
