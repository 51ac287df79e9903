"""Kinds of input: layouts, gradients, dtypes, absent libraries, threads of the caller."""

import numpy as np
import pytest
import torch
from spectral_kernels import (
    sparsify,
)

from tests.support.cases import (
    DTYPES,
    as_numpy,
    bits,
    integer_factors,
    isolated,
    largest,
    mixed_values,
    normal_matrix,
)


def test_layouts() -> None:
    """A view read as if it were contiguous, or an input written to."""
    A = normal_matrix(40, 60)
    base = np.zeros((80, 120), np.float32)
    base[::2, ::2] = A
    layouts = {
        "Fortran": np.asfortranarray(A),
        "strided": base[::2, ::2],
        "reversed": A[::-1, ::-1].copy()[::-1, ::-1],
        "transposed": A.T.copy().T,
        "torch transposed": torch.from_numpy(A.T.copy()).T,
        "torch strided": torch.from_numpy(base)[::2, ::2],
        "torch": torch.from_numpy(A),
        "parameter": torch.nn.Parameter(torch.from_numpy(A.copy())),
    }
    for law in ("threshold", "l1"):
        expected = sparsify(A, sparsity=0.7, law=law, rescale=True)
        for name, layout in layouts.items():
            out = sparsify(layout, sparsity=0.7, law=law, rescale=True)
            np.testing.assert_array_equal(bits(out.weight), bits(expected.weight), err_msg=name)
            np.testing.assert_array_equal(as_numpy(layout), A, err_msg=name)
            assert out.nnz == expected.nnz
    assert (base[1::2] == 0).all()


def test_read_only_input() -> None:
    """A memory-mapped or shared weight, which must not be written to nor refused."""
    A = normal_matrix(40, 60)
    A.flags.writeable = False
    out = sparsify(A, sparsity=0.7)
    np.testing.assert_array_equal(out.weight, np.where(largest(A, 720), A, 0))
    assert out.weight.flags.writeable


def test_requires_grad() -> None:
    """A result that hangs on to the graph, or an error from autograd."""
    A = torch.from_numpy(normal_matrix(40, 60)).requires_grad_()
    for tensor in (A, A * 2, torch.nn.Parameter(A.detach())):
        out = sparsify(tensor, sparsity=0.7, law="l1", rescale=True)
        assert isinstance(out.weight, torch.Tensor)
        assert not out.weight.requires_grad
        assert out.weight.is_contiguous()
    vector = torch.ones(40, requires_grad=True)
    for law in ("l1", "row-l1"):
        sparsify(A, sparsity=0.7, law=law, row=vector)
    left, right = (torch.from_numpy(f).requires_grad_() for f in integer_factors(40, 60))
    sparsify(A, sparsity=0.7, score="principal", factors=(left, right))


@pytest.mark.parametrize("dtype", DTYPES)
def test_kind_dtype_and_shape_are_kept(dtype: str) -> None:
    """Convolution kernels flattened, or a dtype widened."""
    tensor = torch.from_numpy(mixed_values((8, 3 * 5 * 7), 9)).to(getattr(torch, dtype))
    tensor = tensor.reshape(8, 3, 5, 7)
    out = sparsify(tensor, sparsity=0.8, law="l1")
    assert (out.weight.dtype, out.weight.shape) == (tensor.dtype, tensor.shape)
    flat = sparsify(tensor.reshape(8, -1), sparsity=0.8, law="l1")
    np.testing.assert_array_equal(bits(out.weight.reshape(8, -1)), bits(flat.weight))
    channels_last = tensor.to(memory_format=torch.channels_last)
    np.testing.assert_array_equal(
        bits(sparsify(channels_last, sparsity=0.8, law="l1").weight), bits(out.weight)
    )
    if dtype != "bfloat16":
        array = sparsify(tensor.numpy(), sparsity=0.8, law="l1")
        assert isinstance(array.weight, np.ndarray)
        assert (array.weight.dtype, array.weight.shape) == (tensor.numpy().dtype, (8, 3, 5, 7))
        np.testing.assert_array_equal(bits(array.weight), bits(out.weight))


WITHOUT = """
import sys
for name in sys.argv[1:]:
    sys.modules[name] = None
import numpy as np
import spectral_kernels as sk
A = np.arange(-6, 6, dtype=np.float32).reshape(3, 4)
assert sk.sparsify(A, sparsity=0.5).nnz == 6
assert "numba.core.dispatcher" in sys.modules
"""


def test_numpy_users_need_neither_torch_nor_ml_dtypes() -> None:
    """An import of what only other users need."""
    done = isolated(WITHOUT, "torch", "ml_dtypes", "triton", "cupy")
    assert done.returncode == 0, done.stderr


IMPORT = """
import sys
import spectral_kernels
heavy = [name for name in ("torch", "triton", "cupy") if name in sys.modules]
assert not heavy, heavy
assert "spectral_kernels.backends.cpu.kernels" not in sys.modules
"""


def test_import_compiles_nothing() -> None:
    """An import that loads every backend."""
    done = isolated(IMPORT)
    assert done.returncode == 0, done.stderr


THREADS = """
import threading
import numpy as np
import spectral_kernels as sk
A = np.random.default_rng(0).standard_normal((700, 900)).astype(np.float32)
expected = [sk.sparsify(A, sparsity=0.9, law="l1", seed=seed).weight for seed in range(4)]
same = []
def work(seed):
    for _ in range(5):
        out = sk.sparsify(A, sparsity=0.9, law="l1", seed=seed).weight
        same.append(np.array_equal(out, expected[seed]))
workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
[worker.start() for worker in workers]
[worker.join() for worker in workers]
assert same == [True] * 20, same
"""


def test_threads_of_the_caller() -> None:
    """Scratch shared by two calls at once, or a threading layer that aborts the process."""
    done = isolated(THREADS)
    assert done.returncode == 0, done.stderr
