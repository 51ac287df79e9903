"""Products in the precision of their arguments, whatever a library has been told to save.

Each library has a switch of its own that lets float32 products run in TF32 or bfloat16.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import array_api_compat
import numpy as np


@contextmanager
def full_precision(xp: Any) -> Iterator[None]:
    """No TF32, no bfloat16 and no autocast inside; the user's settings are back afterwards."""
    if array_api_compat.is_torch_namespace(xp):
        guard = _torch_precision()
    elif array_api_compat.is_cupy_namespace(xp):
        guard = _cupy_precision()
    else:
        yield
        return
    with guard:
        yield


@contextmanager
def _torch_precision() -> Iterator[None]:
    import torch  # noqa: PLC0415  (only where the caller's arrays are torch's already)
    from torch.backends import mkldnn  # noqa: PLC0415

    # The names of torch >= 2.9 are read and written where they exist: its older global getter
    # raises once a program has used the newer ones.
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, getattr(mkldnn, "matmul", None))
    per_backend = all(hasattr(backend, "fp32_precision") for backend in backends)
    if per_backend:
        before = [backend.fp32_precision for backend in backends]
    else:
        legacy = torch.get_float32_matmul_precision()
    try:
        if per_backend:
            for backend in backends:
                backend.fp32_precision = "ieee"
        else:
            torch.set_float32_matmul_precision("highest")
        with (
            torch.no_grad(),
            torch.autocast("cuda", enabled=False),
            torch.autocast("cpu", enabled=False),
        ):
            yield
    finally:
        if per_backend:
            for backend, value in zip(backends, before, strict=True):
                backend.fp32_precision = value
        else:
            torch.set_float32_matmul_precision(legacy)


@contextmanager
def _cupy_precision() -> Iterator[None]:
    import cupy  # noqa: PLC0415  (as above)

    # CUPY_TF32 is read once at import; the setting behind it has no public name.
    routines = cupy._core._routines_linalg
    before = routines.get_compute_type(np.dtype(np.float32))
    routines.set_compute_type(np.dtype(np.float32), routines.COMPUTE_TYPE_DEFAULT)
    try:
        yield
    finally:
        routines.set_compute_type(np.dtype(np.float32), before)
