"""The budget solved by the Triton kernels, against `budget`: the same bits for any scores."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from spectral_kernels.backends.gpu.launches import float64_bits
from spectral_kernels.backends.gpu.pipeline import FLOATS, INTEGERS, SPANS, fold
from spectral_kernels.backends.gpu.triton import histograms, rank, solve, weights
from spectral_kernels.backends.protocol import Matrix
from spectral_kernels.reference import budget as bg
from spectral_kernels.reference import oracle, rows
from spectral_kernels.reference.laws import Shape

# The interpreter's NumPy warns of what the device does silently: C g(x) of an infinite C.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
M, N = 20, 30
SIZE = M * N
VALUES = 1 << bg.LOW_BITS
CUT, ABOVE, TIES, THRESHOLD = (
    column.value
    for column in (histograms.CUT, histograms.ABOVE, histograms.TIES, histograms.THRESHOLD)
)
EXACT = {"num_warps": 8, "enable_fp_fusion": False}

Scores = NDArray[np.float32]
FAMILIES = {
    "normal": lambda rng: np.abs(rng.standard_normal(SIZE)),
    "lognormal": lambda rng: np.exp(4.0 * rng.standard_normal(SIZE)),
    "one bin": lambda rng: 1.0 + rng.random(SIZE) / 64,
    "integers": lambda rng: rng.integers(0, 4, SIZE).astype(np.float64),
    "outlier": lambda rng: np.append(np.abs(rng.standard_normal(SIZE - 1)), 1e30),
    "subnormal": lambda rng: 1e-40 * rng.standard_normal(SIZE),
    "thirty orders": lambda rng: 10.0 ** rng.uniform(-15.0, 15.0, SIZE),
    "zeros": lambda rng: np.where(rng.random(SIZE) < 0.9, 0.0, rng.random(SIZE)),
    "nothing": lambda rng: np.zeros(SIZE),
}


def scores(family: str, seed: int) -> Scores:
    return np.abs(FAMILIES[family](np.random.default_rng(seed))).astype(np.float32).reshape(M, N)


def table(numbers: NDArray[np.int64]) -> torch.Tensor:
    return torch.tensor(numbers, device=DEVICE)


def empty(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """Memory full of what was there before, which shows if it is read."""
    return torch.full(shape, -77, dtype=dtype, device=DEVICE)


def refined(s: Scores, cut: int, integers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The values of the bin `cut`, as `refine` would count them, and the sums of their spans."""
    values = torch.zeros(VALUES, dtype=torch.int64, device=DEVICE)
    sums = empty(4, SPANS)
    if cut >= 0:
        low, multiplicity = oracle.refine(s, cut)
        values[table(low)] = table(multiplicity)
    histograms.fold_values[(SPANS, 1)](values, integers, sums)
    return values, sums


def solved(s: Scores, shape: Shape, parameter: float, budget: int) -> list[NDArray[np.float32]]:
    """(C, alpha, beta, scale) by the table of values, and by the scores themselves, as rows do."""
    m, n = s.shape
    count, low = (table(part) for part in oracle.histogram(s))
    integers, floats = empty(INTEGERS), empty(FLOATS, dtype=torch.float64)
    solve.solve_law[(1,)](
        count, low, budget, float64_bits(parameter / n if shape == Shape.MAXIMUM else parameter),
        float64_bits(bg.trim_scale(m + n, budget)), m + n, integers, floats, SHAPE=int(shape),
        **EXACT,
    )  # fmt: skip
    values, sums = refined(s, int(integers[CUT]), integers)
    patterns = torch.tensor(s, device=DEVICE).view(torch.int32)
    found = []
    for source, by_row in ((values, False), (patterns, True)):
        laws = empty(1, 4, dtype=torch.float32)
        solve.finish_law[(1,)](
            source, sums, budget, integers, floats, laws, s.size, SHAPE=int(shape), BY_ROW=by_row,
            COLUMNS=512, **EXACT,
        )  # fmt: skip
        found.append(laws.cpu().numpy()[0])
    return found


def check_law(s: Scores, shape: Shape, parameter: float, budget: int) -> None:
    law = oracle.solve(s, shape, parameter, budget)
    expected = np.array([law.C, law.alpha, law.beta, law.scale], np.float32)
    for found in solved(s, shape, parameter, budget):
        np.testing.assert_array_equal(found, expected)


@settings(max_examples=5)
@given(
    st.sampled_from(sorted(FAMILIES)),
    st.sampled_from([(Shape.L1, 0.0), (Shape.L2, 0.0), (Shape.HYBRID, 0.3), (Shape.TRIMMED, 0.0)]),
    st.integers(1, SIZE - 1),
    st.integers(0, 2**32 - 1),
)
def test_laws_equal_those_of_the_host(
    family: str, law: tuple[Shape, float], budget: int, seed: int
) -> None:
    """A sum in another order, a cap one bin off, a rounding, a power of two that overflows."""
    check_law(scores(family, seed), *law, budget)


@pytest.mark.parametrize(
    ("family", "budget"), [("one bin", 300), ("integers", 200), ("outlier", 50)]
)
def test_refined_bins_equal_those_of_the_host(family: str, budget: int) -> None:
    """A value of the cut bin on the wrong side of the cap, or counted twice at a span's edge."""
    check_law(scores(family, 1), Shape.L1, 0.0, budget)
    check_law(scores(family, 1), Shape.L2, 0.0, budget)


def test_branches_of_maximum_equal_those_of_the_host() -> None:
    """A bisection over the edges that ends one edge apart."""
    check_law(scores("integers", 2), Shape.MAXIMUM, 0.01 * N, 139)


@settings(max_examples=5)
@given(st.sampled_from(sorted(FAMILIES)), st.integers(1, SIZE), st.integers(0, 2**32 - 1))
def test_ranks_equal_those_of_the_host(family: str, budget: int, seed: int) -> None:
    """The bin, the value or the number of ties of the K-th largest off by one."""
    s = scores(family, seed)
    count, _ = oracle.histogram(s)
    integers, threshold = empty(INTEGERS), empty(1, dtype=torch.int32)
    stop = empty(1)
    rank.find_rank[(1,)](table(count), budget, integers, **EXACT)
    cut, above = bg.find_rank(count.tolist(), budget)
    assert integers[[CUT, ABOVE]].tolist() == [cut, above]
    rank.finish_threshold[(1,)](
        *refined(s, cut, integers), budget, SIZE, integers, threshold, stop, **EXACT
    )
    pattern, equal, wanted = 0, SIZE - above, budget - above
    if cut >= 0:
        low, multiplicity = (part.tolist() for part in oracle.refine(s, cut))
        value, equal, wanted = bg.find_rank_value(low, multiplicity, above, budget)
        pattern = (cut << bg.LOW_BITS) + value
    assert int(threshold) == int(integers[THRESHOLD]) == pattern
    if wanted in (0, equal):
        assert int(integers[TIES]) == 0
        assert int(stop) == (SIZE if wanted == equal else 0)
    else:
        assert int(integers[TIES]) == wanted


def test_copies_of_a_histogram_are_added() -> None:
    """A copy left out, low bits carried into the count, infinities not reported."""
    rng = np.random.default_rng(3)
    low, count = (rng.integers(0, 1 << bits, (2, 3, bg.BINS)) for bits in (40, 22))
    found = torch.zeros(2, dtype=torch.int64, device=DEVICE)
    packed = table((count << 41) + low)
    A = Matrix(packed, 1, 1, "float32")
    folded = fold(A, packed, found)
    np.testing.assert_array_equal(folded[0].cpu().numpy(), count.sum(1))
    np.testing.assert_array_equal(folded[1].cpu().numpy(), low.sum(1))
    assert found.tolist() == count[:, :, bg.FINITE_BINS :].sum((1, 2)).tolist()


@pytest.mark.parametrize(("m", "budget"), [(1, 5), (37, 100), (1500, 20_000)])
@pytest.mark.parametrize("kind", ["spread", "zeros"])
def test_bernstein_weights_equal_those_of_the_host(m: int, budget: int, kind: str) -> None:
    """Shares summed in another order, rows past the first block, a row of zeros divided by."""
    rng = np.random.default_rng(4)
    l1 = np.exp(3 * rng.standard_normal(m)) if kind == "spread" else np.zeros(m)
    l1[m // 2] = 0.0
    found = empty(m, dtype=torch.float32)
    alpha, beta = rows.bernstein_terms(m, 300, budget)
    weights.bernstein_weights[(1,)](
        torch.tensor(l1, device=DEVICE), found, float64_bits(alpha), float64_bits(beta),
        rows.fixed_point_shift(m, 0), m, ROWS=1024, **EXACT,
    )  # fmt: skip
    expected = rows.bernstein_row_weights(l1, 300, budget)
    np.testing.assert_array_equal(found.cpu().numpy(), expected)
