"""Arrays that are not a plain block of numbers: refused by name and with the way out."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import spectral_engine as se
from spectral_engine.matrix.arrays import as_tensor

W = np.random.default_rng(0).standard_normal((64, 48)).astype("f4")
WAYS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "sparsify": ("weight", lambda A: se.sparsify(A, sparsity=0.5)),
    "inputs": ("inputs", lambda A: se.sparsify(W, "wanda", 0.5, inputs=A)),
    "spectrum": ("weight", lambda A: se.spectrum(A, 2)),
    "original": ("original", lambda A: se.errors(A, W)),
    "sparse": ("sparse", lambda A: se.errors(W, A)),
}


@pytest.mark.parametrize("way", WAYS)
def test_arrays_of_other_byte_order_are_refused_by_name(way: str) -> None:
    """Catches a raw error of torch, and numbers read backwards."""
    name, call = WAYS[way]
    with pytest.raises(TypeError, match=rf"^{name}: expected .*byte order; got .*>f4.*astype"):
        call(W.astype(">f4"))
    call(W.astype(">f4").astype("=f4"))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mask", [True, False])
def test_masked_arrays_are_refused_by_name(way: str, mask: bool) -> None:
    """Catches masked entries that count as if they were not."""
    name, call = WAYS[way]
    masked = np.ma.masked_array(W, (W > 1.0) & mask)
    with pytest.raises(TypeError, match=rf"^{name}: .*masked array.*filled\(0\)"):
        call(masked)
    call(masked.filled(0.0))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
def test_nested_tensors_are_refused_by_name(way: str, layout: torch.layout) -> None:
    """Catches an internal error of torch."""
    name, call = WAYS[way]
    nested = torch.nested.nested_tensor([torch.from_numpy(W)] * 2, layout=layout)
    with pytest.raises(TypeError, match=rf"^{name}: .*nested tensor"):
        call(nested)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((4, 4), dtype=bool), "real numbers; got torch.bool"),
        (np.ones((4, 4), dtype=complex), "real numbers; got torch.complex128"),
        (np.ones((4, 4), dtype=object), "real numbers; got dtype object"),
        (np.ones((4, 4), dtype=np.longdouble), "real numbers; got dtype"),
        (torch.ones(4, 4).to(torch.float8_e4m3fn), "real numbers; got torch.float8_e4m3fn"),
        (torch.ones(4, 4, dtype=torch.uint16), "real numbers; got torch.uint16"),
        (torch.ones(4, 4).to_sparse(), "a dense tensor; got layout torch.sparse_coo"),
        (torch.ones(4, 4, device="meta"), "values; got a tensor on the meta device"),
        ([[1.0]], "a NumPy array, a torch tensor or a CuPy array; got builtins.list"),
    ],
    ids=str,
)
def test_what_torch_does_not_compute_with_is_refused(array: Any, message: str) -> None:
    """Catches a NotImplementedError, or a RuntimeError without the argument's name."""
    with pytest.raises((TypeError, ValueError), match=rf"^there: expected {message}"):
        as_tensor(array, "there")


def test_odd_strides_are_read_right() -> None:
    """Catches a read-only, reversed or unaligned array read wrong or written to."""
    kept = W.copy()
    kept.flags.writeable = False
    packed = np.zeros(64, dtype=[("flag", "i1"), ("row", "f4", (48,))])
    packed["row"] = W
    for array in (kept, W[::-1], W.T, W[:, ::3]):
        np.testing.assert_array_equal(as_tensor(array).numpy(), array)
    try:
        np.testing.assert_array_equal(as_tensor(packed["row"]).numpy(), W)
    except ValueError as error:
        assert str(error).startswith("weight: ")  # noqa: PT017 (either is right)
