"""The operator that torch knows: its registration, what compilers make of it, and its gradient."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from spectral_kernels import LAW_NAMES, sparsify
from spectral_kernels.call import torch_operator as library
from spectral_kernels.reference import oracle
from spectral_kernels.reference.laws import Shape

pytestmark = [
    # torch's own: opcheck and torch.export warn of what they themselves call.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch.*"),
]

ARGUMENTS: dict[str, dict[str, Any]] = {
    "threshold": {"sparsity": 0.5},
    "rescaled": {"sparsity": 0.5, "law": "l1", "rescale": True, "seed": 2**64 - 1},
    "rows": {"sparsity": 0.5, "group": "row", "law": "l2"},
    "vectors": {"sparsity": 0.5, "row": torch.rand(6) + 0.5, "column": torch.rand(9) + 0.5},
    "principal": {
        "sparsity": 0.5, "score": "principal", "factors": (torch.ones(6, 2), torch.ones(2, 9)),
    },
}  # fmt: skip


def weight(dtype: torch.dtype = torch.float32, size: tuple[int, int] = (6, 9)) -> torch.Tensor:
    values = np.random.default_rng(0).standard_normal(size)
    return torch.tensor(values).to(dtype)


def operands(arguments: dict[str, Any], A: torch.Tensor) -> tuple[Any, ...]:
    """The arguments as the schema has them."""
    left, right = arguments.get("factors", (None, None))
    return (
        A, arguments["sparsity"], arguments.get("law", "threshold"), None,
        arguments.get("rescale", False), arguments.get("score", "magnitude"), left, right,
        [0.0, 0.0], arguments.get("row"), arguments.get("column"), arguments.get("group", "tensor"),
        -1 if arguments.get("seed") else 0, 0, 0, 0, True,
    )  # fmt: skip


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("gradient", [False, True])
def test_opcheck(name: str, gradient: bool) -> None:
    """A schema, fake or gradient that lies about what the operator does."""
    A = weight().requires_grad_(gradient)
    torch.library.opcheck(torch.ops.spectral_kernels.sparsify.default, operands(ARGUMENTS[name], A))


@pytest.mark.parametrize("name", ARGUMENTS)
def test_same_bits_as_the_function(name: str) -> None:
    """An argument that the operator drops, or a seed over 2^63 that it bends."""
    found = library.sparsify(weight(), **ARGUMENTS[name])
    assert torch.equal(found, sparsify(weight(), **ARGUMENTS[name]).weight)


@pytest.mark.parametrize("law", LAW_NAMES)
def test_compilers_see_through(law: str) -> None:
    """A graph break, or a fake of another shape or layout."""

    def layer(A: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return x @ library.sparsify(A, sparsity=0.5, law=law, seed=3).T

    x = torch.ones(2, 6)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    found, expected = weight().T.requires_grad_(), weight().T.requires_grad_()
    compiled(found, x).sum().backward()
    layer(expected, x).sum().backward()
    torch.testing.assert_close(found.grad, expected.grad)
    torch.testing.assert_close(compiled(found, x), layer(expected, x))
    torch._dynamo.reset()


def test_export() -> None:
    """An operator that torch.export traces into, or bakes the numbers of."""

    class Layer(torch.nn.Module):
        def forward(self, A: torch.Tensor) -> torch.Tensor:
            return 2 * library.sparsify(A, sparsity=0.5, law="l1")

    exported = torch.export.export(Layer(), (weight(),))
    assert any("spectral_kernels.sparsify" in str(node.target) for node in exported.graph.nodes)
    other = weight() * torch.linspace(0.1, 1, 9)
    assert torch.equal(exported.module()(other), Layer()(other))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rescale", [False, True])
def test_gradient_of_a_fixed_draw(dtype: torch.dtype, rescale: bool) -> None:
    """A gradient let through where nothing was kept, or not divided by the probability."""
    A = weight(dtype, (20, 31)).requires_grad_()
    S = library.sparsify(A, sparsity=0.6, law="l1", rescale=rescale, seed=7)
    G = torch.randn_like(A)
    S.backward(G)
    wide = A.detach().double().numpy()
    s = oracle.score(wide)
    t = oracle.probabilities(s, Shape.L1, oracle.solve(s, Shape.L1, 0.0, 620 - 372)).astype(float)
    kept = S.detach().double().numpy() != 0
    factor = np.where(kept, 2.0**24 / np.maximum(t, 1) if rescale else 1.0, 0.0)
    assert 0 < kept.sum() < kept.size
    assert A.grad is not None
    rtol = {torch.float64: 1e-14, torch.float32: 3e-7, torch.bfloat16: 2.0**-7}[dtype]
    np.testing.assert_allclose(A.grad.double().numpy(), G.double().numpy() * factor, rtol=rtol)


def test_gradient_by_differences() -> None:
    """A gradient that is not that of the values: S is linear in A while the draw stands."""
    A = weight(torch.float64).requires_grad_()
    arguments: dict[str, Any] = {"sparsity": 0.4, "law": "threshold"}
    assert torch.autograd.gradcheck(lambda a: library.sparsify(a, **arguments), A, eps=1e-9,
                                    atol=1e-5)  # fmt: skip


def test_no_mask_is_stored() -> None:
    """A mask, or a copy of the weight, kept for the backward pass."""
    A = weight().requires_grad_()
    stored: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        stored.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        S = library.sparsify(A, sparsity=0.5, law="l1", rescale=True)
    assert set(stored) <= {A.data_ptr(), S.data_ptr()}


def test_refusals_pass_through() -> None:
    """An error of the pipeline that the operator swallows."""
    with pytest.raises(ValueError, match="weight: expected finite"):
        library.sparsify(weight() * torch.nan, sparsity=0.5)
    with pytest.raises(ValueError, match="law: expected one of"):
        library.sparsify(weight(), sparsity=0.5, law="l3")
    for seed in (-1, 1 << 64):
        with pytest.raises(ValueError, match="seed: expected an integer in"):
            library.sparsify(weight(), sparsity=0.5, seed=seed)


def test_the_package_alone_registers_nothing() -> None:
    """An import of the package that pays for torch's registry or for Triton."""
    code = (
        "import sys, spectral_kernels; assert 'torch' not in sys.modules; "
        "assert 'triton' not in sys.modules; "
        "assert 'spectral_kernels.call.torch_operator' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
