"""The integer budget, against sorting in float64: expected counts, exact counts, and each p."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from spectral_kernels.reference import budget as bg
from spectral_kernels.reference import oracle
from spectral_kernels.reference.laws import Shape
from spectral_kernels.reference.stream import UNIT

from tests.support.cases import capped_scale

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
M, N = 100, 200
SIZE = M * N
BUDGETS = (2, 3, 20, 200, 2_000, 5_003, 10_000, 18_000, 19_980)
ALPHA, TAU = 0.3, 0.01


def normal(rng: np.random.Generator) -> Float64:
    return np.abs(rng.standard_normal(SIZE))


def with_outlier(rng: np.random.Generator, size: float) -> Float64:
    s = normal(rng)
    s[1234] = size
    return s


def with_zeros(rng: np.random.Generator) -> Float64:
    return np.where(rng.random(SIZE) < 0.95, 0.0, normal(rng))


def on_bin_edges(rng: np.random.Generator) -> Float64:
    """Scores at both ends of their bins, where the spread within a bin is the largest."""
    ends = np.where(rng.random(SIZE) < 0.5, 0.0, 1 / 32 - 2.0**-23)
    return (1.0 + rng.integers(0, 32, SIZE) / 32 + ends) * 2.0 ** -rng.integers(0, 4, SIZE)


FAMILIES: dict[str, Callable[[np.random.Generator], Float64]] = {
    "constant": lambda rng: np.full(SIZE, 0.7),
    "one ulp apart": lambda rng: np.where(rng.random(SIZE) < 0.5, 1.0, 1.0 + 2.0**-23),
    "two in a bin": lambda rng: np.where(rng.random(SIZE) < 0.7, 1.0, 1.03),
    "two bins": lambda rng: np.where(rng.random(SIZE) < 0.9, 1.0, 8.0),
    "bin edges": on_bin_edges,
    "normal": normal,
    "uniform": lambda rng: rng.random(SIZE),
    "cauchy": lambda rng: np.abs(rng.standard_cauchy(SIZE)),
    "lognormal": lambda rng: np.exp(4.0 * rng.standard_normal(SIZE)),
    "tiny": lambda rng: 1e-30 * normal(rng),
    "subnormal": lambda rng: 1e-40 * normal(rng),
    "huge": lambda rng: 1e37 * normal(rng),
    "outlier 1e12": lambda rng: with_outlier(rng, 1e12),
    "bfloat16": lambda rng: oracle.round_bfloat16(normal(rng)).astype(np.float64),
    "integers": lambda rng: rng.integers(0, 4, SIZE).astype(np.float64),
    "zeros": with_zeros,
}
#: Squares of subnormal scores are known to a bin's width only, which the budget's docstring says.
NORMAL_FAMILIES = [name for name in FAMILIES if name != "subnormal"]
#: Families that span more of float32's range than an x or x^2 scaled by its largest can hold.
#: Thirty orders of magnitude are promised.
WIDE_FAMILIES: dict[str, Callable[[np.random.Generator], Float64]] = {
    "outlier 1e20": lambda rng: with_outlier(rng, 1e20),
    "outlier 1e30": lambda rng: with_outlier(rng, 1e30),
    "tiny and an outlier": lambda rng: with_outlier(rng, 1e30) * 1e-30,
    "wide lognormal": lambda rng: np.exp(10.0 * rng.standard_normal(SIZE)),
    "thirty orders": lambda rng: 10.0 ** rng.uniform(-15.0, 15.0, SIZE),
}


def family(name: str) -> Float32:
    rng = np.random.default_rng(len(name))
    values = (FAMILIES | WIDE_FAMILIES)[name](rng).astype(np.float32)
    assert np.isfinite(values).all()
    return values.reshape(M, N)


def expected_g(s: Float32, shape: Shape) -> Float64:
    """g(s) of the definitions, in float64, for the laws whose p is min(1, c g)."""
    x = s.astype(np.float64) / float(s.max())
    if shape == Shape.L1:
        return x
    if shape == Shape.L2:
        return x * x
    return ALPHA * x / x.sum() + (1.0 - ALPHA) * (x * x) / (x * x).sum()


def expected_maximum(s: Float32, tau: float, budget: int) -> Float64:
    """min(1, max(q, q^2 / tau)) of q = c s with the c that keeps `budget`, by bisection."""
    x = s.astype(np.float64) / float(s.max())
    if budget >= np.count_nonzero(x):
        return (x > 0).astype(np.float64)
    low, high = -200.0, 200.0
    for _ in range(100):
        middle = 0.5 * (low + high)
        q = np.minimum(2.0**middle * x, 1.0)
        p = np.minimum(1.0, np.maximum(q, q * q / tau))
        low, high = (low, middle) if p.sum() > budget else (middle, high)
    return p


def drawn(s: Float32, shape: Shape, parameter: float, budget: int) -> Float64:
    """The probabilities that the kernels would really use."""
    t = oracle.probabilities(s, shape, oracle.solve(s, shape, parameter, budget))
    assert np.isfinite(t).all()
    assert (t == np.floor(t)).all()
    assert t.max() <= UNIT
    return t.astype(np.float64) / UNIT


def check_sum(p: Float64, s: Float32, budget: int) -> None:
    """The promise: within 1e-3 of the budget, or of what there is to keep."""
    target = min(budget, np.count_nonzero(s))
    assert abs(p.sum() - target) <= 1e-3 * target, (budget, p.sum())


def check_each(p: Float64, expected: Float64) -> None:
    """Each p near the definition's: to a third of a bin's width, and a few steps of the grid.

    The sum is promised to 1e-3; where nearly all of it is capped, the few others carry the error.
    """
    np.testing.assert_allclose(p, expected, rtol=0.01, atol=3 / UNIT)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (name, shape)
        for name in FAMILIES
        for shape in (Shape.L1, Shape.L2, Shape.HYBRID)
        if name != "subnormal" or shape == Shape.L1
    ],
)
def test_expected_count(name: str, shape: Shape) -> None:
    """A cap counted in the wrong bin, a mass modelled too coarsely, a law of the wrong shape."""
    s = family(name)
    g = expected_g(s, shape)
    for budget in BUDGETS:
        p = drawn(s, shape, ALPHA, budget)
        check_sum(p, s, budget)
        c = capped_scale(g, budget)
        check_each(p, np.minimum(1.0, c * g) if math.isfinite(c) else (g > 0).astype(float))


@pytest.mark.parametrize("name", NORMAL_FAMILIES)
@pytest.mark.parametrize("tau", [TAU, 0.5, 1e-6])
def test_expected_count_of_maximum(name: str, tau: float) -> None:
    """am07's two branches weighed wrongly against each other."""
    s = family(name)
    for budget in BUDGETS[::2]:
        p = drawn(s, Shape.MAXIMUM, tau * N, budget)
        check_sum(p, s, budget)
        # beta comes from the histogram alone: where the branches meet inside one bin, p may be
        # off by a bin's width.
        np.testing.assert_allclose(p, expected_maximum(s, tau, budget), rtol=0.04, atol=3 / UNIT)


@pytest.mark.parametrize("name", NORMAL_FAMILIES)
def test_expected_count_of_trimmed(name: str) -> None:
    """A trim at the wrong place, or one that leaves fewer entries than the budget."""
    s = family(name)
    wide = s.astype(np.float64)
    positive = np.count_nonzero(s)
    for budget in BUDGETS:
        solved = oracle.solve(s, Shape.TRIMMED, 0.0, budget)
        candidates = (s * np.float32(solved.scale) >= np.float32(solved.alpha)) & (s > 0)
        assert candidates.sum() >= min(budget, positive)
        scale = float(wide.max())
        norm = float(np.sqrt(((wide / scale) ** 2).sum())) * scale
        epsilon = math.sqrt(14 * (M + N) * math.log((M + N) / math.sqrt(2)) / budget) * norm
        trim = epsilon / (M + N)
        if (wide > 1.001 * trim).sum() >= budget:
            assert candidates[wide > 1.001 * trim].all()
            assert not candidates[wide < 0.96 * trim].any()
        p = drawn(s, Shape.TRIMMED, 0.0, budget)
        check_sum(p, s, budget)
        assert not p[~candidates].any()
        g = np.where(candidates, (wide / scale) ** 2, 0.0)
        c = capped_scale(g, budget)
        check_each(p, np.minimum(1.0, c * g) if math.isfinite(c) else (g > 0).astype(float))


LAW_SHAPES = [
    (Shape.L1, 0.0), (Shape.L2, 0.0), (Shape.HYBRID, ALPHA), (Shape.MAXIMUM, TAU * N),
    (Shape.TRIMMED, 0.0),
]  # fmt: skip


@pytest.mark.parametrize("name", WIDE_FAMILIES)
@pytest.mark.parametrize(("shape", "parameter"), LAW_SHAPES)
def test_expected_count_over_a_wide_range(name: str, shape: Shape, parameter: float) -> None:
    """x, x^2 or C that under- or overflows float32, so that far too few entries are kept."""
    s = family(name)
    for budget in (200, 5_003, 18_000, SIZE):
        check_sum(drawn(s, shape, parameter, budget), s, budget)


@pytest.mark.parametrize(("shape", "parameter"), LAW_SHAPES)
def test_all_that_there_is(shape: Shape, parameter: float) -> None:
    """A budget over the number of nonzeros, under which every nonzero has p = 1."""
    for name in ("zeros", "outlier 1e12", "integers", "subnormal"):
        s = family(name)
        for budget in (np.count_nonzero(s), SIZE):
            p = drawn(s, shape, parameter, int(budget))
            np.testing.assert_array_equal(p, s > 0, err_msg=name)


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 60), st.floats(1e-4, 0.999))
def test_expected_count_of_any_small_matrix(seed: int, m: int, n: int, density: float) -> None:
    """A small group, where one entry is much of the budget: rows are such groups."""
    rng = np.random.default_rng(seed)
    values = np.exp(rng.uniform(0, 5) * rng.standard_normal((m, n)))
    values[rng.random((m, n)) < rng.choice([0.0, 0.5])] = 0.0
    s = values.astype(np.float32)
    budget = max(1, round(density * m * n))
    if not s.any():
        return
    for shape in (Shape.L1, Shape.L2, Shape.HYBRID):
        check_sum(drawn(s, shape, ALPHA, budget), s, budget)


def test_zero_group() -> None:
    """A division by zero where a group holds nothing."""
    s = np.zeros((3, 4), np.float32)
    for shape, parameter in LAW_SHAPES:
        solved = oracle.solve(s, shape, parameter, 5)
        assert not oracle.probabilities(s, shape, solved).any()


def test_hybrid_ends_are_l1_and_l2() -> None:
    """alpha weighs the wrong term."""
    s = family("cauchy")
    for alpha, shape in ((1.0, Shape.L1), (0.0, Shape.L2)):
        for budget in (200, 10_000):
            hybrid = oracle.solve(s, Shape.HYBRID, alpha, budget)
            pure = oracle.solve(s, shape, 0.0, budget)
            np.testing.assert_array_equal(
                oracle.probabilities(s, Shape.HYBRID, hybrid),
                oracle.probabilities(s, shape, pure),
            )


@pytest.mark.parametrize("name", [*FAMILIES, *WIDE_FAMILIES])
def test_exact_rank(name: str) -> None:
    """The bin of the K-th largest, its value or its ties off by one."""
    s = family(name)
    count, _ = oracle.histogram(s)
    patterns = np.sort(s.view(np.uint32).ravel())[::-1]
    positive = np.count_nonzero(s)
    for budget in (1, 2, 199, 5_003, positive - 1, positive, positive + 1, SIZE):
        if not 1 <= budget <= SIZE:
            continue
        cut, above = bg.find_rank(count.tolist(), budget)
        if budget > positive:
            assert (cut, above) == (-1, positive)
            continue
        low, multiplicity = (part.tolist() for part in oracle.refine(s, cut))
        value, equal, wanted = bg.find_rank_value(low, multiplicity, above, budget)
        pattern = (cut << bg.LOW_BITS) + value
        assert pattern == patterns[budget - 1]
        assert equal == np.count_nonzero(patterns == pattern)
        assert wanted == budget - np.count_nonzero(patterns > pattern)
        assert 1 <= wanted <= equal


def test_value_of_is_exact() -> None:
    """A subnormal or a power of two read wrong."""
    rng = np.random.default_rng(0)
    patterns = [*rng.integers(0, 0x7F800000, 5000).tolist(), 0, 1, 0x7FFFFF, 0x800000, 0x7F7FFFFF]
    values = np.array(patterns, np.uint32).view(np.float32).astype(np.float64)
    for top in (1, 127, 253):
        got = [bg.value_of(p, top) for p in patterns]
        np.testing.assert_array_equal(got, np.ldexp(values, 127 - top))


def test_sum_of_scores_is_exact() -> None:
    """The claim that the budget rests on: count and low sum give the sum of a bin exactly."""
    s = family("cauchy")
    count, low = oracle.histogram(s)
    occupied = np.flatnonzero(count)
    top = bg.top_exponent(int(occupied[-1]))
    sums = [bg.bin_moments(int(count[b]), int(low[b]), int(b), top) for b in occupied]
    wide = np.ldexp(s.astype(np.float64), 127 - top)
    assert math.fsum(first for first, _ in sums) == pytest.approx(
        math.fsum(wide.ravel()), rel=1e-13
    )
    squares = math.fsum((wide.ravel() ** 2).tolist())
    assert math.fsum(second for _, second in sums) == pytest.approx(squares, rel=2e-4)


def test_shards_have_one_solution() -> None:
    """A solution that depends on how the matrix was cut."""
    s = family("lognormal")
    whole = oracle.histogram(s)
    parts = [oracle.histogram(part) for part in (s[:7], s[7:50], s[50:, :3], s[50:, 3:])]
    for k in (0, 1):
        np.testing.assert_array_equal(np.sum([part[k] for part in parts], axis=0), whole[k])
