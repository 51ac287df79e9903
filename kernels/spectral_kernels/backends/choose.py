"""The one place that chooses a backend, by an array's type and device.

NumPy arrays and torch tensors on the CPU go to the Numba kernels; torch tensors on CUDA and CuPy
arrays go to the Triton kernels. Choosing starts no CUDA context and compiles no kernel.
"""

from typing import Any

import numpy as np

from spectral_kernels.backends.protocol import Backend, module_of


def backend_for(array: Any, argument: str = "weight") -> Backend:
    """The backend that handles `array`; an error calls it `argument`.

    Raises:
        TypeError: not a NumPy array, torch tensor or CuPy array, or on a device with no backend.
        RuntimeError: a CUDA array where Triton is not installed; says what to install.
    """
    package = module_of(array)
    if isinstance(array, np.ndarray):
        device = "cpu"
    elif package == "torch" and hasattr(array, "layout"):
        device = array.device.type
    elif package == "cupy" and hasattr(array, "__dlpack__"):
        device = "cuda"
    else:
        device = ""
    if device == "cpu":
        from spectral_kernels.backends.cpu.backend import CPU  # noqa: PLC0415 (Numba takes half a second)

        return CPU
    if device == "cuda":
        try:
            from spectral_kernels.backends.gpu.backend import GPU  # noqa: PLC0415 (Triton may be missing)
        except ModuleNotFoundError as error:
            raise RuntimeError(
                f"{argument}: arrays on CUDA need {error.name}; install it with "
                f"`pip install {error.name}`"
            ) from error
        return GPU
    where = f" on device {device!r}" if device else ""
    raise TypeError(
        f"{argument}: expected a NumPy array, a torch tensor on cpu or cuda, or a CuPy array; "
        f"got {type(array).__module__}.{type(array).__qualname__}{where}"
    )
