"""Many matrices in the launches of one: the bits of one by one."""

from typing import Any

import numpy as np
import pytest
import torch
from spectral_kernels import sparsify, sparsify_many
from spectral_kernels.backends.gpu.backend import GPUBackend
from spectral_kernels.call import arguments

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#: Whole rows in a tile and several tiles to a row, rows that no vector divides, one entry.
SHAPES = [(9, 150), (12, 130), (3, 701), (1, 1)]


def weights(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    rng = np.random.default_rng(0)
    return [
        torch.tensor(np.round(rng.standard_normal(shape), 1) * 4.0**k, device=DEVICE).to(dtype)
        for k, shape in enumerate(SHAPES)
    ]


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send tensors on the CPU to the Triton kernels, where there is no device."""
    if DEVICE == "cpu":
        backend = GPUBackend(entries=512)
        monkeypatch.setattr(arguments, "backend_for", lambda weight, argument="weight": backend)


def one_by_one(matrices: list[torch.Tensor], **arguments: Any) -> list[Any]:
    """On the CPU kernels."""
    return [sparsify(A.cpu(), stream=9 + k, **arguments) for k, A in enumerate(matrices)]


@pytest.mark.parametrize(
    ("dtype", "arguments"),
    [
        (torch.float32, {}),
        (torch.float32, {"law": "l1", "rescale": True, "seed": 2**63 + 5}),
        (torch.bfloat16, {"law": "l2"}),
        (torch.float64, {}),
    ],
)
def test_same_bits_as_one_by_one(
    request: pytest.FixtureRequest, dtype: torch.dtype, arguments: dict[str, Any]
) -> None:
    """A table row mixed up, a budget or stream of another layer, ties counted across layers."""
    matrices = weights(dtype)
    expected = one_by_one(matrices, sparsity=0.7, **arguments)
    request.getfixturevalue("on_device")
    streams = [9 + k for k in range(len(matrices))]
    found = sparsify_many(matrices, sparsity=0.7, streams=streams, **arguments)
    for one, other, A in zip(found, expected, matrices, strict=True):
        assert torch.equal(one.weight.cpu(), other.weight)
        assert one.weight.shape == A.shape
        assert (one.nnz, one.c) == (other.nnz, other.c)


@pytest.mark.parametrize("arguments", [{"group": "row"}, {"law": "row-l1"}], ids=str)
def test_on_the_cpu(arguments: dict[str, Any]) -> None:
    """An argument that the loop drops."""
    matrices = [A.cpu() for A in weights()]
    found = sparsify_many(
        matrices, sparsity=[0.7] * 4, streams=[9 + k for k in range(4)], **arguments
    )
    for one, other in zip(found, one_by_one(matrices, sparsity=0.7, **arguments), strict=True):
        assert torch.equal(one.weight, other.weight)


@pytest.mark.usefixtures("on_device")
def test_the_layer_at_fault_is_refused() -> None:
    """NaN of one layer laid at another's door, or refused before it is asked for."""
    matrices = weights()[:2]
    matrices[1][0, 0] = torch.nan
    with pytest.raises(ValueError, match="weight: expected finite"):
        sparsify_many(matrices, sparsity=0.5)
    good, bad = sparsify_many(matrices, sparsity=0.5, check=False)
    assert good.nnz > 0
    with pytest.raises(ValueError, match=r"weight: expected finite.*got 1 that"):
        _ = bad.nnz


@pytest.mark.usefixtures("on_device")
def test_all_and_none_kept_beside_some() -> None:
    """A budget of all entries or none handed to a law that divides by what is left."""
    matrices = weights()[:2] * 2
    found = sparsify_many(matrices, sparsity=[0.0, 0.5, 0.5, 0.9999], law="l1")
    assert torch.equal(found[0].weight, matrices[0])
    assert found[3].nnz == 0
    assert not found[3].weight.any()
    for one, A, stream in zip(found[1:3], matrices[1:3], (1, 2), strict=True):
        assert torch.equal(one.weight, sparsify(A, sparsity=0.5, law="l1", stream=stream).weight)


@pytest.mark.usefixtures("on_device")
def test_float64_under_the_range_of_float32_is_refused() -> None:
    """Entries that score 0 in float32, dropped without a word where there are many matrices."""
    small = torch.full((4, 8), 1e-300, dtype=torch.float64, device=DEVICE)
    with pytest.raises(ValueError, match=r"weight: expected a largest entry of 2\^-126 or more"):
        sparsify_many([small, small], sparsity=0.5)


def test_bad_lists() -> None:
    """Lists of unequal length zipped to the shorter, a tensor taken for a list of its rows."""
    A = weights()[0].cpu()
    with pytest.raises(ValueError, match="sparsity: expected one for each of 2 weights; got 3"):
        sparsify_many([A, A], sparsity=[0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="streams: expected one for each of 2 weights; got 1"):
        sparsify_many([A, A], sparsity=0.5, streams=[1])
    with pytest.raises(TypeError, match="weights: expected a list or tuple; got Tensor"):
        sparsify_many(A, sparsity=0.5)  # type: ignore[arg-type]
    assert sparsify_many([], sparsity=0.5) == []
