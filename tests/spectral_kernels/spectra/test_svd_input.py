"""What randomized_svd and singular_values refuse, and what they leave as they found it."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import array_api_strict
import numpy as np
import pytest
import torch
from spectral_kernels.spectra.precision import full_precision
from spectral_kernels.spectra.svd import randomized_svd, singular_values

from tests.support.spectra_cases import LIBRARIES, to_library, to_numpy

GOOD = np.random.default_rng(0).standard_normal((30, 20)).astype(np.float32)


@pytest.mark.parametrize(
    ("A", "error", "match"),
    [
        ([[1.0, 2.0]], TypeError, r"A: expected a dense array .* got builtins.list"),
        (torch.eye(3).to_sparse(), TypeError, r"A: expected a dense array .* got torch.Tensor"),
        (np.ones((3, 3), dtype=np.int32), TypeError, "A: expected dtype float16, .* got int32"),
        (np.ones((3, 3), dtype=complex), TypeError, "A: expected dtype .* got complex128"),
        (torch.ones(3, 3, dtype=torch.bool), TypeError, "A: expected dtype .* got bool"),
        (np.float32(3.0) * np.ones(()), ValueError, r"A: expected shape .* got \(\)"),
        (np.ones(4), ValueError, r"A: expected shape \(\.\.\., m, n\) .* got \(4,\)"),
        (np.ones((0, 4)), ValueError, r"A: expected shape .* got \(0, 4\)"),
        (np.ones((0, 4, 4)), ValueError, r"A: expected shape .* got \(0, 4, 4\)"),
    ],
)
def test_refused_matrices(A: Any, error: type[Exception], match: str) -> None:
    """Catches input that would fail inside a library, with a message that names nothing."""
    with pytest.raises(error, match=match):
        randomized_svd(A, 1)
    with pytest.raises(error, match=match):
        singular_values(A)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_broken_matrix_is_named(bad: float, library: str) -> None:
    """Catches NaN or infinity in one matrix of a batch that spoils or hides among the others."""
    A = np.zeros((2, 3, 30, 20), dtype=np.float32)
    A[1, 2, 7, 4] = bad
    for call in (lambda X: randomized_svd(X, 2), singular_values):
        with pytest.raises(ValueError, match=r"in matrix \(1, 2\) of the batch"):
            call(to_library(A, library))
        with pytest.raises(ValueError, match=r"in matrix 2 of the batch"):
            call(to_library(A[1], library))
        with pytest.raises(ValueError, match=r"got NaN or infinity$"):
            call(to_library(A[1, 2], library))


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"rank": 0}, ValueError, r"rank: expected 1 to min\(m, n\) = 20; got 0"),
        ({"rank": 21}, ValueError, r"rank: expected 1 to min\(m, n\) = 20; got 21"),
        ({"rank": 2.0}, TypeError, "rank: expected an integer; got 2.0"),
        ({"rank": True}, TypeError, "rank: expected an integer; got True"),
        ({"depth": 0}, ValueError, "depth: expected 1 or more; got 0"),
        ({"block": 0}, ValueError, "block: expected 1 or more; got 0"),
        ({"rank": 9, "depth": 2, "block": 4}, ValueError, r"depth: .* >= rank = 9; got 2 \* 4"),
        ({"tolerance": -1e-3}, ValueError, "tolerance: expected .* 0 or more; got -0.001"),
        ({"tolerance": float("nan")}, ValueError, "tolerance: expected a finite number"),
        ({"tolerance": "1e-3"}, TypeError, "tolerance: expected a number; got '1e-3'"),
        ({"seed": -1}, ValueError, r"seed: expected an integer in \[0, "),
        ({"seed": 2**64}, ValueError, r"seed: expected an integer in \[0, "),
        ({"seed": 1.5}, TypeError, "seed: expected an integer; got float"),
        ({"stream": 2**32}, ValueError, r"stream: expected an integer in \[0, 2\^32\)"),
    ],
)
def test_refused_arguments(arguments: dict[str, Any], error: type[Exception], match: str) -> None:
    """Catches an argument that is out of range and used all the same."""
    with pytest.raises(error, match=match):
        randomized_svd(GOOD, **{"rank": 3, **arguments})


def test_refused_method() -> None:
    """Catches a misspelt method that falls through to a default."""
    with pytest.raises(ValueError, match="method: expected 'auto', 'gram' or 'svd'; got 'fast'"):
        singular_values(GOOD, "fast")  # type: ignore[arg-type]


@pytest.mark.parametrize("library", LIBRARIES)
def test_input_is_not_written_to(library: str) -> None:
    """Catches a decomposition that works in place."""
    A = np.random.default_rng(3).standard_normal((130, 120))
    X = to_library(A.copy(), library)
    randomized_svd(X, 3)
    singular_values(X)
    np.testing.assert_array_equal(to_numpy(X), A)


def test_strided_and_trainable_input() -> None:
    """Catches a need for contiguous rows, and results that drag an autograd graph behind them."""
    A = np.random.default_rng(3).standard_normal((130, 240))
    expected = randomized_svd(A[:, ::2].copy(), 3).S
    np.testing.assert_allclose(randomized_svd(A[:, ::2], 3).S, expected, rtol=1e-12)
    parameter = torch.nn.Parameter(torch.from_numpy(A)[:, ::2].to(torch.bfloat16))
    found = randomized_svd(parameter, 3)
    assert not any(x.requires_grad for x in found[:4])
    assert parameter.grad_fn is None


def test_reduced_precision_is_off_inside_and_back_afterwards() -> None:
    """Catches products in TF32 or bfloat16, by a global switch or by autocast, and a switch that
    is left changed.
    """
    A = torch.from_numpy(np.random.default_rng(3).standard_normal((260, 240))).float()
    expected = randomized_svd(A, 8, depth=3).S
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = randomized_svd(A, 8, depth=3).S
            assert torch.is_autocast_enabled("cpu")
        assert torch.get_float32_matmul_precision() == "medium"
        with pytest.raises(ValueError, match="rank"), full_precision(torch):
            randomized_svd(A, 0)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found, expected)


def test_strict_arrays_of_the_oldest_supported_standard() -> None:
    """Catches a function newer than the array API standard 2024.12."""
    with array_api_strict.ArrayAPIStrictFlags(api_version="2024.12"):
        found = randomized_svd(array_api_strict.asarray(GOOD), 3)
    np.testing.assert_allclose(
        to_numpy(found.S), np.linalg.svd(GOOD, compute_uv=False)[:3], rtol=1e-5
    )


def test_reduced_precision_is_off_for_every_thread_that_wants_it_off() -> None:
    """Catches the first of two threads that is done turning it on under the other, and the second
    one bringing back what the first had set."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    inside, done = threading.Event(), threading.Event()

    def other() -> None:
        with full_precision(torch):
            inside.set()
            assert done.wait(10)

    try:
        with ThreadPoolExecutor(1) as pool:
            with full_precision(torch):
                running = pool.submit(other)
                assert inside.wait(10)
            within = torch.backends.mkldnn.matmul.fp32_precision
            done.set()
            running.result()
        assert (within, torch.backends.mkldnn.matmul.fp32_precision) == ("ieee", "bf16")
    finally:
        torch.set_float32_matmul_precision(before)
