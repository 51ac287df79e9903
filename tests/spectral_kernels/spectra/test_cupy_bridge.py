"""torch's arrays in CuPy's hands: on a device with CuPy as it is, elsewhere with a stand-in."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from spectral_kernels.spectra import _cupy
from spectral_kernels.spectra.svd import randomized_svd

STREAM = SimpleNamespace(cuda_stream=4096, device_index=0)


class OnCuda(torch.Tensor):
    """A CPU tensor that says it is on CUDA."""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", 0)


class StandIn:
    """As much of CuPy as is asked for, in NumPy; `events` is what happened, in order."""

    class ndarray:  # noqa: N801
        """CuPy's own name for it."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.Stream = SimpleNamespace(
            from_external=lambda stream: self._entered(stream.__cuda_stream__())
        )
        self.cuda = self

    def ExternalStream(self, pointer: int, device: int) -> Any:
        return self._entered((pointer, device))

    def PythonFunctionAllocator(self, allocate: Any, release: Any) -> Any:
        self.release = release
        return SimpleNamespace(malloc=allocate)

    @contextmanager
    def using_allocator(self, allocate: Any) -> Iterator[None]:
        self.events.append(allocate(512, 0))
        yield

    @contextmanager
    def _entered(self, stream: Any) -> Iterator[None]:
        self.events.append(("entered", stream))
        yield
        self.events.append("left")

    def from_dlpack(self, tensor: torch.Tensor) -> np.ndarray:
        array = tensor.as_subclass(torch.Tensor).numpy()
        self.events.append(("lent", array.ctypes.data))
        return array


@pytest.fixture
def lend(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """The stand-in in CuPy's place, and torch's CUDA functions that it meets."""
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "cupy", stand_in)
    for name, replacement in {
        "current_stream": lambda device: STREAM,
        "device": lambda device: nullcontext(),
        "caching_allocator_alloc": lambda size, device, stream: size + stream,
        "caching_allocator_delete": lambda pointer: stand_in.events.append(("freed", pointer)),
    }.items():
        monkeypatch.setattr(torch.cuda, name, replacement)
    return stand_in


def matrix() -> torch.Tensor:
    return torch.randn((40, 30), generator=torch.Generator().manual_seed(0))


def test_memory_and_stream_are_those_of_torch(lend: StandIn) -> None:
    """A copy, a pool of CuPy's own, a stream that the other must wait for."""
    A = matrix()
    with _cupy.lent_to_cupy(A.as_subclass(OnCuda)) as array:
        assert array.ctypes.data == A.data_ptr()
    assert lend.events == [
        ("entered", (0, 4096)), 512 + 4096, ("lent", A.data_ptr()), "left",
    ]  # fmt: skip
    lend.release(77, 0)
    assert lend.events[-1] == ("freed", 77)


def test_older_cupy(lend: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version without the stream protocol, whose stream is another."""
    monkeypatch.delattr(lend.Stream, "from_external")
    with _cupy.torch_memory(torch.device("cuda", 0)):
        assert lend.events[0] == ("entered", (4096, 0))


def test_svd_by_cupy(lend: StandIn) -> None:
    """Options lost on the way, or results that stay in CuPy's arrays."""
    A = matrix()
    found = randomized_svd(A.as_subclass(OnCuda), 5, seed=3, library="cupy")
    expected = randomized_svd(A.numpy(), 5, seed=3)
    for ours, theirs in zip(found[:4], expected[:4], strict=True):
        assert type(ours) is torch.Tensor
        np.testing.assert_array_equal(ours.numpy(), theirs)
    assert found.iterations == expected.iterations


def test_bfloat16_is_copied(lend: StandIn) -> None:
    """A dtype handed over that CuPy has not."""
    with _cupy.lent_to_cupy(matrix().bfloat16().as_subclass(OnCuda)) as array:
        assert array.dtype == np.float32


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor of the CPU, or a missing CuPy, found out deep inside."""
    with pytest.raises(TypeError, match=r"library: 'cupy' works .* got torch\.Tensor on cpu"):
        randomized_svd(matrix(), 3, library="cupy")
    with pytest.raises(ValueError, match="library: expected 'own' or 'cupy'; got 'numpy'"):
        randomized_svd(matrix(), 3, library="numpy")
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: STREAM)
    with pytest.raises(RuntimeError, match="install cupy-cuda13x or cupy-cuda12x"):
        randomized_svd(matrix().as_subclass(OnCuda), 3, library="cupy")


@pytest.mark.gpu
def test_on_a_device() -> None:
    """An allocator, a stream or a hand-over that CuPy itself does not take."""
    pytest.importorskip("cupy")
    A = matrix().cuda()
    found = randomized_svd(A, 5, library="cupy")
    expected = randomized_svd(A, 5)
    torch.testing.assert_close(found.S, expected.S, rtol=1e-4, atol=0.0)
    assert found.U.is_cuda
