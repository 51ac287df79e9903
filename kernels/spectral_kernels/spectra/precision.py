"""Products in the precision of their arguments, whatever a library is set to.

Each library has a switch of its own that lets float32 products run in TF32 or bfloat16. A switch
belongs to the process. Where several threads need it off, the first turns it off, and the last
restores the user's setting.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import array_api_compat
import numpy as np

#: Brings a setting back.
Restore = Callable[[], None]


class _Switch:
    """A setting of the process that is off while anyone needs it off."""

    def __init__(self, turn_off: Callable[[], Restore]) -> None:
        self._turn_off = turn_off
        self._lock = threading.Lock()
        self._users = 0
        self._restore: Restore = lambda: None

    @contextmanager
    def off(self) -> Iterator[None]:
        with self._lock:
            if self._users == 0:
                self._restore = self._turn_off()
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    self._restore()


@contextmanager
def full_precision(xp: Any) -> Iterator[None]:
    """A context in which products keep the precision of their arguments.

    No TF32, no bfloat16 and no autocast inside; the user's settings are back afterwards.

    Args:
        xp: the array API namespace that the products are done in, or the array library itself.

    Returns:
        The context, which gives nothing.

    >>> import numpy as np
    >>> from spectral_kernels.spectra import full_precision
    >>> with full_precision(np):
    ...     product = np.eye(2) @ np.eye(2)
    """
    with ExitStack() as stack:
        if array_api_compat.is_torch_namespace(xp):
            import torch  # noqa: PLC0415  (only where the caller's arrays are torch's already)

            stack.enter_context(_TORCH.off())
            stack.enter_context(torch.no_grad())
            for device in ("cuda", "cpu"):
                stack.enter_context(torch.autocast(device, enabled=False))
        elif array_api_compat.is_cupy_namespace(xp):
            stack.enter_context(_CUPY.off())
        yield


def _torch_off() -> Restore:
    import torch  # noqa: PLC0415  (as above)
    from torch.backends import mkldnn  # noqa: PLC0415

    # The names of torch >= 2.9 are read and written where they exist: its older global getter
    # raises once a program has used the newer ones.
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, getattr(mkldnn, "matmul", None))
    if not all(hasattr(backend, "fp32_precision") for backend in backends):
        legacy = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        return lambda: torch.set_float32_matmul_precision(legacy)
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"

    def restore() -> None:
        for backend, value in zip(backends, before, strict=True):
            backend.fp32_precision = value

    return restore


def _cupy_off() -> Restore:
    import cupy  # noqa: PLC0415  (as above)

    # CUPY_TF32 is read once at import; the setting behind it has no public name.
    routines, kind = cupy._core._routines_linalg, np.dtype(np.float32)
    before = routines.get_compute_type(kind)
    routines.set_compute_type(kind, routines.COMPUTE_TYPE_DEFAULT)
    return lambda: routines.set_compute_type(kind, before)


_TORCH, _CUPY = _Switch(_torch_off), _Switch(_cupy_off)
