"""torch tensors lent to CuPy: no copy, one stream, one pool of memory.

Without this CuPy keeps a pool of its own beside torch's, so that each holds memory that the other
could use, and the work of each library waits for the stream of the other.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.dlpack import from_dlpack


class _Stream:
    """A stream by the CUDA stream protocol, which not all versions of torch speak."""

    def __init__(self, pointer: int) -> None:
        self.pointer = pointer

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.pointer


def _cupy() -> Any:
    try:
        import cupy  # noqa: PLC0415 (only who asks for it needs it)
    except ModuleNotFoundError as error:
        raise RuntimeError(
            "library: 'cupy' needs CuPy; install cupy-cuda13x or cupy-cuda12x, as your CUDA is"
        ) from error
    return cupy


@contextmanager
def torch_memory(device: torch.device) -> Iterator[Any]:
    """CuPy, with all that it does inside on torch's current stream and in torch's memory pool.

    What it allocates may outlive the context; it then goes back to torch's pool.

    Raises:
        RuntimeError: CuPy is not installed.
    """
    cupy = _cupy()
    stream = torch.cuda.current_stream(device)

    def allocate(size: int, index: int) -> int:
        return int(torch.cuda.caching_allocator_alloc(size, index, stream.cuda_stream))

    def release(pointer: int, index: int) -> None:
        torch.cuda.caching_allocator_delete(pointer)  # type: ignore[no-untyped-call]

    allocator = cupy.cuda.PythonFunctionAllocator(allocate, release)
    with torch.cuda.device(device):  # which CuPy takes the stream to be of
        if hasattr(cupy.cuda.Stream, "from_external"):
            same = cupy.cuda.Stream.from_external(_Stream(stream.cuda_stream))
        else:
            same = cupy.cuda.ExternalStream(stream.cuda_stream, stream.device_index)
        with same, cupy.cuda.using_allocator(allocator.malloc):
            yield cupy


@contextmanager
def lent_to_cupy(A: torch.Tensor) -> Iterator[Any]:
    """A CUDA tensor as a CuPy array of the same memory, under `torch_memory`.

    bfloat16, which CuPy has not, is copied to float32.

    Raises:
        TypeError: not a CUDA tensor. RuntimeError: CuPy is not installed.
    """
    if not isinstance(A, torch.Tensor) or A.device.type != "cuda":
        where = f" on {A.device}" if isinstance(A, torch.Tensor) else ""
        raise TypeError(
            "library: 'cupy' works on a torch tensor on CUDA; "
            f"got {type(A).__module__}.{type(A).__qualname__}{where}"
        )
    A = A.detach()
    with torch_memory(A.device) as cupy:
        yield cupy.from_dlpack(A.float() if A.dtype == torch.bfloat16 else A)


def returned(array: Any) -> torch.Tensor:
    """A CuPy array as a tensor of the same memory, contiguous."""
    tensor: torch.Tensor = from_dlpack(array)
    return tensor.contiguous()
