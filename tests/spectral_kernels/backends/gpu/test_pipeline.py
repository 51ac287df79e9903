"""Whole calls on a device: they do not wait for it, and what is wrong is raised when it is read."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from spectral_kernels import sparsify
from spectral_kernels.backends.gpu.backend import GPUBackend
from spectral_kernels.call import arguments

from tests.support.processes import run_python

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux"),
    pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning"),
]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
Launches = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def launches() -> dict[str, Launches]:
    """Target -> call -> its launches, from calls on tensors that cannot be read."""

    def run(target: str) -> Launches:
        found: Launches = {}
        for line in run_python("-m", "tests.support.triton_device", target).splitlines():
            launch = json.loads(line)
            found.setdefault(launch["call"], []).append(launch)
        return found

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(TARGETS, pool.map(run, TARGETS), strict=True))


@pytest.mark.parametrize("target", TARGETS)
def test_no_call_waits_for_the_device(launches: dict[str, Launches], target: str) -> None:
    """A count, a flag or an index read back in the middle, or a kernel that does not compile."""
    assert len(launches[target]) == 15


@pytest.mark.parametrize(
    ("call", "most"), [("threshold", 9), ("l1", 8), ("hybrid", 7), ("threshold rows", 3)]
)
def test_launches_of_a_call(launches: dict[str, Launches], call: str, most: int) -> None:
    """A stage that is queued twice, or cut into pieces."""
    assert len(launches["sm_90"][call]) <= most


@pytest.mark.parametrize(("law", "most"), [("threshold", 9), ("l1", 8)])
def test_launches_do_not_grow_with_the_layers(
    launches: dict[str, Launches], law: str, most: int
) -> None:
    """A stage that is queued for each layer."""
    calls = [launches["sm_90"][f"{law} of {layers}"] for layers in (2, 40)]
    few, many = ([launch["kernel"] for launch in call] for call in calls)
    assert few == many
    assert len(many) <= most


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send tensors on the CPU to the Triton kernels, where there is no device."""
    if DEVICE == "cpu":
        backend = GPUBackend(entries=4096)
        monkeypatch.setattr(arguments, "backend_for", lambda weight, argument="weight": backend)


def matrix(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    values = np.random.default_rng(0).standard_normal((6, 40))
    return torch.tensor(values, device=DEVICE).to(dtype)


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"law": "l1"}, {"group": "row"}, {"law": "bernstein"}, {"score": "principal"}],
    ids=str,
)
def test_not_finite_is_refused(value: float, arguments: dict[str, Any]) -> None:
    """NaN that a spectral score hides, or that is only noticed by who reads the weight."""
    A = matrix()
    if arguments.get("score"):
        factors = (torch.ones(6, 1, device=DEVICE), torch.ones(1, 40, device=DEVICE))
        arguments = {**arguments, "factors": factors}
    A[3, 7] = value
    with pytest.raises(ValueError, match=r"weight: expected finite entries.* got 1 that"):
        sparsify(A, sparsity=0.5, **arguments)
    late = sparsify(A, sparsity=0.5, check=False, **arguments)
    for _ in range(2):  # asked again it must not pass
        with pytest.raises(ValueError, match="weight: expected finite entries"):
            _ = late.nnz
        with pytest.raises(ValueError, match="weight: expected finite entries"):
            _ = late.c
    assert "6, 40" in repr(late)


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize("arguments", [{}, {"law": "bernstein"}], ids=str)
def test_nothing_loops_for_ever(arguments: dict[str, Any]) -> None:
    """A search for more ties, or a larger zeta, than there is where NaN stands in the way."""
    A = torch.zeros(6, 40, device=DEVICE)
    A[:5] = torch.nan
    late = sparsify(A, sparsity=0.5, check=False, **arguments)
    with pytest.raises(ValueError, match="weight: expected finite entries"):
        _ = late.nnz


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"row": [1.0, -1.0, 1.0, 1.0, 1.0, 1.0]}, "row: expected finite float32 values >= 0"),
        ({"row": [1.0, 1.0, torch.inf, 1.0, 1.0, 1.0]}, "row: expected finite float32 values >= 0"),
    ],
)
def test_vectors_are_refused(arguments: dict[str, Any], message: str) -> None:
    """A vector with an infinity or a negative factor that no one looks at."""
    vectors = {name: torch.tensor(value, device=DEVICE) for name, value in arguments.items()}
    with pytest.raises(ValueError, match=f"{message}; got 1 that"):
        sparsify(matrix(), sparsity=0.5, **vectors)


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize(
    ("dtype", "large"), [(torch.float16, 60000.0), (torch.bfloat16, 3e38), (torch.float32, 3e38)]
)
def test_overflow_is_refused(dtype: torch.dtype, large: float) -> None:
    """A / p beyond the range of the dtype, by a check that the law's scale lets through."""
    A = torch.full((6, 40), large, dtype=dtype, device=DEVICE)
    arguments: dict[str, Any] = {"sparsity": 0.5, "law": "l1", "rescale": True}
    with pytest.raises(ValueError, match=r"rescale: \d+ A / p overflow"):
        sparsify(A, **arguments)
    late = sparsify(A, check=False, **arguments)
    with pytest.raises(ValueError, match=r"rescale: \d+ A / p overflow"):
        _ = late.nnz


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize("law", ["threshold", "l1"])
def test_nothing_and_everything_kept(law: str) -> None:
    """Budgets of 0 and of all entries, which leave nothing to solve."""
    A = matrix()
    all_kept, none_kept = (sparsify(A, sparsity=share, law=law) for share in (0.0, 0.999))
    assert torch.equal(all_kept.weight, A)
    assert all_kept.nnz == A.numel()
    assert none_kept.nnz == 0
    assert not none_kept.weight.any()


def test_check_must_be_a_bool() -> None:
    """A check that is left out because of a typing error."""
    with pytest.raises(TypeError, match="check: expected a bool; got 'no'"):
        sparsify(matrix(), sparsity=0.5, check="no")  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.parametrize("law", ["threshold", "l1", "bernstein"])
def test_replay_of_a_captured_graph(law: str) -> None:
    """A stage that the capture of a CUDA graph forbids, or a budget solved but once."""
    A = matrix().contiguous()
    arguments: dict[str, Any] = {"sparsity": 0.5, "law": law}
    sparsify(A, **arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = sparsify(A, **arguments)
    A.mul_(torch.linspace(0.1, 2.0, 40, device=DEVICE))
    graph.replay()
    again = sparsify(A, **arguments)
    assert torch.equal(captured.weight, again.weight)
    assert (captured.nnz, captured.c) == (again.nnz, again.c)
