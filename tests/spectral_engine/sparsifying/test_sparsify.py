"""One matrix through the front door: kinds, dtypes, views, the report, refit and calibration."""

import inspect
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spectral_kernels import LAW_NAMES

import spectral_engine as se

METHODS = ("magnitude", "randomized", "principal", "aligned")
TORCH_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def bits(tensor: torch.Tensor) -> np.ndarray:
    """The bytes of a tensor in logical order."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy()


def test_names_and_defaults_are_the_contract():
    """Catches a renamed, reordered or dropped argument, which other code calls by name."""
    parameters = inspect.signature(se.sparsify).parameters
    positional = [p.name for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == ["weight", "recipe", "sparsity"]
    assert {name: one.default for name, one in parameters.items() if name != "weight"} == {
        "recipe": "magnitude", "sparsity": None, "inputs": None, "seed": 0, "stream": 0,
    }  # fmt: skip
    assert len(inspect.signature(se.prune).parameters) <= 10
    errors = inspect.signature(se.errors).parameters
    assert list(errors)[:3] == ["original", "sparse", "rank"]
    assert errors["rank"].default == 64


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
def test_torch_kind_is_kept(dtype, method):
    """Catches a result of another class, dtype, shape or device, and an input that is changed."""
    weight = gaussian(6, 4, 3, 3, dtype=dtype)
    before = bits(weight).copy()
    out = se.sparsify(weight, method, 0.5)
    assert type(out.weight) is torch.Tensor
    assert (out.weight.dtype, out.weight.shape, out.weight.device) == (
        weight.dtype,
        weight.shape,
        weight.device,
    )
    assert np.array_equal(bits(weight), before)
    assert out.weight.data_ptr() != weight.data_ptr()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numpy_equals_torch(dtype, method):
    """Catches NumPy and torch going different ways: same bits are the contract."""
    weight = gaussian(17, 9).numpy().astype(dtype)
    here = se.sparsify(weight, method, 0.6, seed=3, stream=4)
    there = se.sparsify(torch.from_numpy(weight), method, 0.6, seed=3, stream=4)
    assert type(here.weight) is np.ndarray
    assert here.weight.dtype == weight.dtype
    assert here.weight.tobytes() == there.weight.numpy().tobytes()
    assert here.mask.dtype == np.bool_


@pytest.mark.parametrize("method", METHODS)
def test_views_equal_copies(method):
    """Catches strides that are ignored: transposed, sliced, flipped, channels-last, read-only."""
    weight = gaussian(12, 8, 3, 3)
    views = [
        gaussian(40, 30).T[::2, 1:],
        weight.to(memory_format=torch.channels_last),
        weight[:, ::3],
        torch.ones(1, 1).expand(5, 7),
    ]
    for view in views:
        found = se.sparsify(view, method, 0.5).weight
        assert torch.equal(found, se.sparsify(view.contiguous(), method, 0.5).weight)
    flipped = gaussian(9, 7).numpy()[::-1, ::-1]
    frozen = flipped.copy()
    frozen.flags.writeable = False
    for view in (flipped, frozen):
        found = se.sparsify(view, method, 0.5).weight
        assert np.array_equal(found, se.sparsify(flipped.copy(), method, 0.5).weight)


@pytest.mark.parametrize("refit", [None, se.Scale()])
@pytest.mark.parametrize("method", METHODS)
def test_no_grad_history(method, refit):
    """Catches a result that drags the autograd graph of a parameter along."""
    parameter = torch.nn.Parameter(gaussian(8, 6))
    before = parameter.detach().clone()
    for weight in (parameter, 2 * parameter):
        out = se.sparsify(weight, replace(se.preset(method, 0.5), refit=refit))
        assert not out.weight.requires_grad
        assert out.weight.grad_fn is None
        assert out.report.errors.frobenius > 0
    assert parameter.requires_grad
    assert torch.equal(parameter.detach(), before)


@pytest.mark.parametrize(
    "method",
    [
        *(se.preset(name).method for name in METHODS),
        *(
            kind(law=law)
            for kind in (se.Randomized, se.Principal, se.Aligned)
            for law in LAW_NAMES
            if law != "threshold"
        ),
    ],
)
def test_report_is_complete_and_true(method):
    """Catches a report that disagrees with the array it reports on, or that is no plain data."""
    weight = gaussian(30, 20)
    recipe = se.Recipe(method, budget=se.Uniform(0.7, group="row"))
    out = se.sparsify(weight, recipe)
    report = out.report
    assert out.nnz == report.nnz == int((out.weight != 0).sum())
    assert out.sparsity == report.sparsity == pytest.approx(1 - out.nnz / 600)
    assert torch.equal(out.mask, out.weight != 0)
    assert (report.recipe, report.requested) == (recipe, 0.7)
    assert report.rank == (10 if method.needs_low_rank else None)
    assert report.size == 600
    assert report.c > 0
    assert report.seconds > 0
    plain = json.loads(json.dumps(report.to_dict()))
    assert set(plain) == {name for name in vars(report) if name not in ("_pair", "errors")}


def test_errors_of_the_report():
    """Catches errors measured against something other than the original."""
    weight = gaussian(20, 30)
    out = se.sparsify(weight, "randomized", 0.5)
    assert out.report.errors.spectral == se.errors(weight, out.weight).spectral


@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.floats(0, 0.99),
    st.sampled_from(METHODS),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=40)
def test_support_and_values(m, n, sparsity, method, seed, stream):
    """Catches an entry that was made up or changed: presets keep A, or A / p with p <= 1."""
    weight = gaussian(m, n, seed=m * 100 + n)
    out = se.sparsify(weight, method, sparsity, seed=seed, stream=stream)
    kept = out.mask
    if method == "randomized":
        assert bool((out.weight.abs() >= weight.abs())[kept].all())
        assert bool((out.weight.sign() == weight.sign())[kept].all())
    else:
        assert torch.equal(out.weight[kept], weight[kept])
    if method in ("magnitude", "principal"):
        assert out.nnz == m * n - round(sparsity * m * n)


@pytest.mark.parametrize("method", METHODS)
def test_sparsity_zero_is_the_identity(method):
    """Catches a method that changes what it was told to keep."""
    weight = gaussian(9, 7).abs()
    out = se.sparsify(weight, method, 0.0)
    if method == "aligned":  # scores of 0 are kept too
        assert out.sparsity == 0.0
    assert torch.equal(out.weight, weight)


def test_seed_and_stream_decide_the_draw():
    """Catches a seed or a stream that is ignored, and a draw that is not reproducible."""
    weight = gaussian(40, 40)

    def mask(**where):
        return se.sparsify(weight, "randomized", 0.5, **where).mask

    assert torch.equal(mask(seed=1, stream=2), mask(seed=1, stream=2))
    assert not torch.equal(mask(seed=1), mask(seed=2))
    assert not torch.equal(mask(stream=1), mask(stream=2))


def test_default_rank_and_principal_scores():
    """Catches a rank that is off by one, and scores that are not those of the truncated SVD."""
    A = gaussian(24, 16, dtype=torch.float64)
    U, S, Vh = torch.linalg.svd(A, full_matrices=False)
    for rank in (None, 3):
        k = rank or 8
        B = (U[:, :k] * S[:k]) @ Vh[:k]
        out = se.sparsify(A, se.Principal(rank=rank, mixture=0.0), 0.75)
        assert out.report.rank == k
        assert torch.equal(
            out.mask, B.abs() >= B.abs().flatten().kthvalue(A.numel() * 3 // 4 + 1)[0]
        )
        out = se.sparsify(A, se.Aligned(rank=rank), 0.75)
        score = (A * B).clamp(min=0)
        assert torch.equal(out.mask, score >= score.flatten().kthvalue(A.numel() * 3 // 4 + 1)[0])


def test_mixture_goes_from_principal_to_magnitude():
    """Catches shares swapped, norms left out of the mixture, or a share that does nothing."""
    A = gaussian(24, 16)
    whole = se.sparsify(A, se.Principal(mixture=1.0), 0.5)
    assert torch.equal(whole.mask, se.sparsify(A, "magnitude", 0.5).mask)
    U, S, Vh = torch.linalg.svd(A.double(), full_matrices=False)
    B = (U[:, :8] * S[:8]) @ Vh[:8]
    low, full = B.square() / B.square().sum(), A.double().square() / A.double().square().sum()
    for share in (0.3, 0.5, 0.0):
        score = (1 - share) * low + share * full
        expected = score >= score.flatten().kthvalue(A.numel() // 2 + 1)[0]
        assert torch.equal(se.sparsify(A, se.Principal(mixture=share), 0.5).mask, expected)


@pytest.mark.parametrize(
    ("dtype", "numpy"),
    [(dtype, False) for dtype in TORCH_DTYPES] + [(torch.float16, True), (torch.float32, True)],
)
def test_refit_scale_restores_the_first_value(dtype, numpy):
    """Catches a scalar that is inverted or applied to a copy; the support must stay."""
    weight = gaussian(40, 30, dtype=dtype)
    plain = se.sparsify(weight, "magnitude", 0.8)
    out = se.sparsify(weight.numpy() if numpy else weight, se.Recipe(refit=se.Scale()), 0.8)
    found = torch.as_tensor(out.weight)
    assert found.dtype == dtype
    assert torch.equal(found != 0, plain.mask)
    assert out.nnz == int((found != 0).sum())
    before, after = (torch.linalg.matrix_norm(x.double(), 2) for x in (weight, found))
    rounding = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(dtype, 0.0)
    assert float(after) == pytest.approx(float(before), rel=2e-3 + rounding)


@pytest.mark.filterwarnings("error")
def test_refit_that_overflows_is_refused():
    """Catches infinities written into a float16 weight."""
    weight = torch.full((8, 8), 6e4, dtype=torch.float16)
    for given_weight in (weight, weight.numpy()):
        with pytest.raises(ValueError, match=r"refit: .*overflow torch.float16"):
            se.sparsify(given_weight, se.Recipe(refit=se.Scale()), 0.9)


def test_zero_matrix():
    """Catches a division by a norm that is zero."""
    for method in METHODS:
        out = se.sparsify(torch.zeros(5, 4), replace(se.preset(method, 0.5), refit=se.Scale()))
        assert not out.mask.any()
    assert out.report.errors.spectral == 0.0
    assert not se.sparsify(torch.zeros(5, 4), "principal", 0.5).mask.any()


@pytest.mark.parametrize("kind", ["torch", "numpy", "int", "batched"])
def test_inputs_make_wanda(kind):
    """Catches features taken along the wrong axis, or a mean that is no root mean square."""
    weight, inputs = gaussian(10, 6), gaussian(50, 6, seed=1) * torch.arange(1, 7)
    scale = inputs.square().mean(0).sqrt()
    given_inputs = {
        "torch": inputs, "numpy": inputs.numpy(), "int": inputs.round().int(),
        "batched": inputs.reshape(5, 10, 6).half(),
    }[kind]  # fmt: skip
    if kind == "int":
        scale = inputs.round().square().mean(0).sqrt()
    score = weight.abs() * scale
    expected = score >= score.topk(3, dim=1).values[:, -1:]
    assert torch.equal(se.sparsify(weight, "wanda", 0.5, inputs=given_inputs).mask, expected)


NAN = torch.full((3, 4), float("nan"))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"weight": [[1.0]]}, TypeError, "weight: expected a NumPy array.*got builtins.list"),
        ({"weight": None}, TypeError, "weight: .*got builtins.NoneType"),
        ({"weight": torch.ones(3)}, ValueError, r"weight: expected two dimensions.*\(3,\)"),
        ({"weight": torch.tensor(1.0)}, ValueError, "weight: expected two dimensions"),
        ({"weight": torch.ones(0, 3)}, ValueError, "weight: expected at least one entry"),
        ({"weight": torch.ones(3, 3).int()}, TypeError, "weight: expected dtype.*got int32"),
        ({"weight": torch.ones(3, 3).bool()}, TypeError, "weight: expected dtype.*got bool"),
        ({"weight": torch.ones(3, 3) * 1j}, TypeError, "weight: expected dtype.*complex64"),
        ({"weight": np.ones((3, 3), ">f4")}, TypeError, "weight: expected dtype.*got >f4"),
        ({"weight": torch.eye(3).to_sparse()}, TypeError, "weight: expected a dense tensor"),
        ({"weight": torch.ones(3, 3, device="meta")}, TypeError, "weight: .*'meta'"),
        ({"weight": NAN}, ValueError, "weight: expected finite.*12 that are NaN"),
        ({"weight": NAN, "recipe": "principal"}, ValueError, "NaN"),
        ({"weight": NAN.double() * 0 + 1e300}, ValueError, "weight: .*NaN"),
        ({"recipe": "nope"}, ValueError, "recipe: expected one of magnitude"),
        ({"sparsity": 1.0}, ValueError, r"sparsity: .*\[0, 1\); got 1.0"),
        ({"sparsity": -0.1}, ValueError, "sparsity: .*got -0.1"),
        ({"sparsity": float("nan")}, ValueError, "sparsity: .*got nan"),
        ({"sparsity": "0.5"}, TypeError, "sparsity: expected a number; got str"),
        ({"sparsity": True}, TypeError, "sparsity: expected a number; got bool"),
        ({"recipe": se.Principal(rank=4)}, ValueError, r"rank: .*min\(m, n\) = 3; got 4"),
        ({"recipe": None}, TypeError, "recipe: expected a Recipe, a method or a preset's name"),
        ({"seed": -1}, ValueError, "seed: .*got -1"),
        ({"seed": 2**64}, ValueError, "seed: "),
        ({"seed": 1.0}, TypeError, "seed: expected an integer; got float"),
        ({"stream": 2**32}, ValueError, "stream: "),
        ({"inputs": [[1.0] * 4]}, TypeError, "inputs: expected a NumPy array"),
        ({"inputs": torch.tensor(1.0)}, ValueError, r"inputs: expected shape \(..., 4\); got \(\)"),
        ({"inputs": torch.ones(2, 3)}, ValueError, r"inputs: expected shape \(..., 4\)"),
        ({"inputs": torch.ones(0, 4)}, ValueError, "inputs: expected at least one sample"),
        ({"inputs": NAN}, ValueError, "inputs: .*finite"),
        ({"inputs": torch.ones(2, 4) * 1j}, TypeError, "inputs: expected real numbers"),
        ({"inputs": torch.ones(2, 4).double() * 1e300}, ValueError, "inputs: .*fits float32"),
    ],
)
def test_bad_input(arguments, error, message):
    """Catches a mistake that passes, or whose message does not name the argument."""
    with pytest.raises(error, match=message):
        se.sparsify(**{"weight": torch.ones(3, 4), **arguments})


@pytest.mark.parametrize("power", [-100, -75, 60, 100])
@pytest.mark.parametrize("method", ["aligned", "principal", "magnitude", "randomized"])
def test_masks_do_not_depend_on_the_scale(method: str, power: int) -> None:
    """Catches scores that leave float32's range: A * B of a matrix of 1e-30 is 0 everywhere."""
    A = np.random.default_rng(4).standard_normal((40, 60)).astype(np.float32)
    expected = se.sparsify(A, method, 0.9).weight
    found = se.sparsify(A * np.float32(2.0**power), method, 0.9).weight
    np.testing.assert_array_equal(found, expected * np.float32(2.0**power))
