"""Arrays whose memory is not simply their entries: refused by name, or read as what they are."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from spectral_kernels import check_weight, sparsify
from spectral_kernels.spectra import randomized_svd, singular_values, spectral_norm

FLOATS = np.arange(1.0, 13.0, dtype=np.float32).reshape(3, 4)


class Wrapper(torch.Tensor):
    """A tensor that holds its entries in another one, as quantised and sharded ones do."""

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "Wrapper":
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype)

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> torch.Tensor:
        raise NotImplementedError(f"{func} of a Wrapper")


Wrapper.__module__ = "torch.distributed.tensor"  # as that of torch's own ones


def nested(layout: torch.layout) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that they are a prototype
        return torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(3, 3)], layout=layout)


ODD: dict[str, tuple[Callable[[], Any], str]] = {
    "masked": (
        lambda: np.ma.masked_array(FLOATS, mask=FLOATS > 3.0),
        r"expected a plain array; got a masked array, .*array\.filled\(0\)",
    ),
    "another byte order": (
        lambda: FLOATS.astype(FLOATS.dtype.newbyteorder()),
        r"expected dtype of this machine's byte order; got [<>]f4: give array\.astype",
    ),
    "nested": (lambda: nested(torch.strided), r"got a nested tensor: .*tensor\.unbind\(\)"),
    "jagged": (lambda: nested(torch.jagged), r"(nested|dense)"),
    "wrapped": (lambda: Wrapper(torch.ones(3, 4)), r"expected a plain tensor; got a Wrapper"),
}


@pytest.mark.parametrize("kind", ODD)
def test_refused_by_name(kind: str) -> None:
    """A mask that is ignored, so that hidden entries are kept; bytes read in the wrong order; an
    error of torch that names neither the argument nor a way out."""
    make, message = ODD[kind]
    array = make()
    with pytest.raises(TypeError, match=f"weight: .*{message}"):
        sparsify(array, sparsity=0.5)
    with pytest.raises(TypeError, match=f"layer: .*{message}"):
        check_weight(array, "layer")
    for function in (singular_values, spectral_norm, lambda A: randomized_svd(A, 1)):
        with pytest.raises(TypeError, match=f"A: .*{message}"):
            function(array)


def test_vectors_are_refused_by_name() -> None:
    """A masked vector of the score, whose hidden values count."""
    column = np.ma.masked_array(np.ones(4, np.float32), mask=[True, False, False, False])
    with pytest.raises(TypeError, match="column: expected a plain array; got a masked array"):
        sparsify(FLOATS, sparsity=0.5, column=column)


def test_a_sparse_layout_is_refused_with_a_way_out() -> None:
    """A refusal that leaves open what to do."""
    with pytest.raises(TypeError, match=r"weight: .*got layout torch.sparse_coo: .*to_dense"):
        sparsify(torch.eye(3).to_sparse(), sparsity=0.5)


@pytest.mark.parametrize("law", ["threshold", "l1"])
def test_a_sign_that_torch_keeps_apart(law: str) -> None:
    """A view of torch that negates when it is read: an error, or every sign turned round."""
    negated = torch.imag(torch.complex(torch.ones(3, 4), torch.from_numpy(FLOATS)).conj())
    assert negated.is_neg()
    expected = sparsify(-FLOATS, sparsity=0.5, law=law)
    assert sparsify(negated, sparsity=0.5, law=law).weight.tolist() == expected.weight.tolist()
