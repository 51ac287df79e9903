"""Run by a test, in a process of its own: whole calls compiled for a GPU that is not there.

    python triton_device.py TARGET

Calls run on fake tensors: they have a shape but no data, so whatever would read from one, for
which a call would wait for its device, raises. Nothing may be uploaded either. Prints one line of
JSON per launch: call, kernel, programs.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from spectral_kernels import sparsify, sparsify_many
from spectral_kernels.backends.gpu import backend as gpu
from spectral_kernels.backends.gpu import launches, many, patterns, pipeline, plan
from spectral_kernels.backends.gpu.compile import TARGETS
from spectral_kernels.call import arguments
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime import driver
from triton.runtime.jit import JITFunction, MockTensor

ANY_PATTERN = {"law": "l1", "rescale": True}
CALLS: dict[str, dict[str, Any]] = {
    "threshold": {},
    "l1": ANY_PATTERN,
    "hybrid": {"law": "hybrid"},
    "am07": {"law": "am07", "law_parameter": 50.0},
    "trimmed-l2": {"law": "trimmed-l2"},
    "bernstein": {"law": "bernstein"},
    "threshold rows": {"group": "row"},
    "l1 rows": {"group": "row", **ANY_PATTERN},
}


class StandIn:
    """As much of a Triton driver as compiling asks for."""

    def __init__(self, target: str) -> None:
        self.target = TARGETS[target]

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return device

    def get_current_target(self) -> Any:
        return self.target


launch = JITFunction.run
LAUNCHES: list[tuple[str, Any]] = []


def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
    """Compile for what the arguments are, and go no further."""
    LAUNCHES.append((self.__name__, grid))
    mocked = [mock(argument) for argument in args]
    named = {name: mock(argument) for name, argument in kwargs.items()}
    return launch(self, *mocked, grid=grid, warmup=True, **named)


def mock(argument: Any) -> Any:
    """What stands for a tensor when a kernel is compiled: a pointer to its type."""
    return MockTensor(argument.dtype) if isinstance(argument, torch.Tensor) else argument


def upload(*_: Any, **__: Any) -> Any:
    raise RuntimeError("host memory is sent to the device")


class Unread(TorchDispatchMode):
    """For calls that need addresses, which fake tensors have not: reading a number raises."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            raise RuntimeError(f"{function} waits for the device")
        return function(*args, **kwargs or {})


@contextmanager
def call(name: str) -> Iterator[None]:
    LAUNCHES.clear()
    yield
    for kernel, grid in LAUNCHES:
        print(json.dumps({"call": name, "kernel": kernel, "grid": grid}), flush=True)


def main(target: str) -> None:
    driver.set_active(StandIn(target))
    JITFunction.run = compile_only
    nvidia = TARGETS[target].backend == "cuda"
    for module in (launches, many, patterns, plan):
        module.has_nvidia = lambda: nvidia
    for module in (gpu, pipeline):
        module.captured = lambda: False
    gpu.interpreted = lambda: True
    sent = torch.tensor
    torch.tensor = torch.as_tensor = torch.from_numpy = upload
    arguments.backend_for = lambda weight, argument="weight": gpu.GPU
    with FakeTensorMode():
        A = torch.empty(64, 200, dtype=torch.bfloat16)
        for name, options in CALLS.items():
            with call(name):
                sparsify(A, sparsity=0.7, check=False, **options)
        factors = (torch.empty(64, 8), torch.empty(8, 200))
        row, column = torch.empty(64), torch.empty(200)
        for score in ("principal", "aligned", "mixture"):
            with call(score):
                sparsify(
                    A, sparsity=0.7, check=False, score=score, factors=factors, mixture=(1.0, 1.0),
                    row=row, column=column,
                )  # fmt: skip
    torch.tensor = sent
    with Unread():
        for layers in (2, 40):
            weights = [torch.empty(8 + k % 5, 2048 + 8 * k) for k in range(layers)]
            for law in ("threshold", "l1"):
                with call(f"{law} of {layers}"):
                    sparsify_many(weights, sparsity=0.7, law=law, rescale=law == "l1", check=False)


if __name__ == "__main__":
    main(sys.argv[1])
