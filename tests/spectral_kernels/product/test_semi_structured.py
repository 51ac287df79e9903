"""2:4 on matrix units: when they are used, and what torch is given, without such a device."""

import pytest
import torch
from spectral_kernels.product import Packed
from spectral_kernels.product.gpu import operator, packing, semi_structured
from torch.sparse import _semi_structured_conversions as conversions


def two_of_four(m: int, n: int, dtype: torch.dtype, fewer: bool = False) -> torch.Tensor:
    """Two values in every four columns; `fewer`: some groups have one or none."""
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(m, n // 4, 4, generator=generator).argsort(2)
    weight = torch.where(order < 2, torch.randn(order.shape, generator=generator), 0.0)
    if fewer:
        weight[::3, ::5] = 0.0
        weight[1::3, ::7, 2:] = 0.0
    return weight.reshape(m, n).to(dtype)


def packed_of(weight: torch.Tensor) -> Packed:
    return Packed(*packing.pack(weight), (weight.shape[0], weight.shape[1]))


@pytest.fixture
def units(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """A device that has the units; what torch would be given to convert."""
    given: list[torch.Tensor] = []

    def convert(dense: torch.Tensor) -> torch.Tensor:
        given.append(dense)
        sparse, meta = conversions.sparse_semi_structured_from_dense_cutlass(dense)
        return conversions.sparse_semi_structured_to_dense_cutlass(sparse, meta)

    monkeypatch.setattr(semi_structured, "has_units", lambda device: True)
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", convert)
    return given


@pytest.mark.parametrize("fewer", [False, True])
@pytest.mark.parametrize("dtype", semi_structured.DTYPES, ids=str)
def test_many_sides(dtype: torch.dtype, fewer: bool, units: list[torch.Tensor]) -> None:
    """A matrix that is not the one that is stored, one converted at each call, or for few sides,
    for which the kernel reads fewer bytes.
    """
    weight = two_of_four(64, 128, dtype, fewer)
    run = operator.Runner(packed_of(weight))
    few, many = torch.randn(3, 128).to(dtype), torch.randn(2, 20, 128).to(dtype)
    exact = few.double() @ weight.double().T
    assert torch.allclose(run(few).double(), exact, rtol=0.02, atol=0.1)
    assert units == []
    for _ in range(2):
        assert torch.equal(run(many), torch.nn.functional.linear(many, weight))
    assert len(units) == 1
    assert torch.equal(units[0], weight)
    assert torch.allclose(run(many.float()), many.float() @ weight.float().T, atol=1e-3)


@pytest.mark.parametrize(
    "weight",
    [
        two_of_four(64, 128, torch.float32),
        two_of_four(40, 128, torch.float16),
        two_of_four(64, 96, torch.float16),
        two_of_four(64, 128, torch.float16).roll(1, 1),
        torch.ones(64, 128, dtype=torch.float16),
    ],
    ids=["dtype", "rows", "columns", "pattern", "dense"],
)
def test_what_the_units_do_not_take(weight: torch.Tensor, units: list[torch.Tensor]) -> None:
    """Another dtype, shape or pattern given to torch, which would refuse it or drop values."""
    x = torch.randn(20, weight.shape[1]).to(weight.dtype)
    assert torch.equal(operator.Runner(packed_of(weight))(x), x @ weight.T)
    assert units == []


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units looked for on the CPU, on an AMD GPU, or on a device before Ampere."""
    device = torch.device("cuda", 0)
    for capability, has in (((7, 5), False), ((8, 0), True), ((10, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, of=capability: of)
        assert semi_structured.has_units(device) == has
    assert not semi_structured.has_units(torch.device("cpu"))
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert not semi_structured.has_units(device)
