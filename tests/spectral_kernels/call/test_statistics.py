"""Draws are Bernoulli(t / 2^24), independent, and the estimate is exactly unbiased.

Every test runs at fixed seeds and a significance of 1e-6, divided among all that it compares.
"""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from spectral_kernels import sparsify
from spectral_kernels.backends.cpu.backend import CPU
from spectral_kernels.backends.protocol import Draw, LawTable, Scoring
from spectral_kernels.reference import oracle
from spectral_kernels.reference.laws import Shape
from spectral_kernels.reference.stream import UNIT, stream_id

from tests.support.cases import DTYPES, Case, as_numpy, case, mixed_values

SIGNIFICANCE = 1e-6
BUDGET_SHARE = 0.3


def solved(one: Case, shape: Shape, density: float) -> tuple[oracle.Scale, NDArray[np.float64]]:
    """The law for a density, and the probabilities t / 2^24 that it really uses."""
    s = oracle.score(one.matrix)
    scale = oracle.solve(s, shape, 0.3, round(density * s.size))
    return scale, oracle.probabilities(s, shape, scale).astype(np.float64) / UNIT


class Sampler:
    """Draws of one matrix under one law, by the CPU kernel."""

    def __init__(self, one: Case, shape: Shape, scale: oracle.Scale, rescale: bool) -> None:
        parameters = np.array([[scale.C, scale.alpha, scale.beta, scale.scale]], np.float32)
        self.table = LawTable(parameters, shape, rescale)
        self.A = CPU.matrix(one.array)
        self.result = CPU.empty_like(one.array)
        self.out = CPU.matrix(self.result)

    def __call__(self, **place: int) -> tuple[Any, int]:
        """The sampled matrix, valid until the next call, and its count."""
        return self.result, CPU.sample(self.A, Scoring(), self.table, Draw(**place), self.out)


def two_sided(count: NDArray[np.int64], n: int, p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Exact binomial p-values."""
    below = stats.binom.cdf(count, n, p)
    above = stats.binom.sf(count - 1, n, p)
    return np.minimum(1.0, 2.0 * np.minimum(below, above))


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [*((dtype, Shape.L1) for dtype in DTYPES), ("float32", Shape.L2), ("float32", Shape.HYBRID)],
)
def test_unbiased(dtype: str, shape: Shape) -> None:
    """Division by a probability other than the one used, or draws that are not uniform."""
    one = case(mixed_values((16, 40), 1), dtype)
    scale, p = solved(one, shape, BUDGET_SHARE)
    draw = Sampler(one, shape, scale, rescale=True)
    seeds = 500
    total = np.zeros(one.matrix.shape)
    count = np.zeros(one.matrix.shape, np.int64)
    for seed in range(seeds):
        result = as_numpy(draw(seed=seed, stream=9)[0]).astype(np.float64)
        total += result
        count += result != 0
    A = one.matrix.astype(np.float64)
    alive = (A != 0) & (p > 0)
    assert not count[~alive].any()
    assert (count[p == 1] == seeds).all()
    drawn = alive & (p < 1)
    assert drawn.sum() > 300
    assert two_sided(count[drawn], seeds, p[drawn]).min() > SIGNIFICANCE / drawn.sum()
    # What a kept entry adds, times the probability used, is the entry: to its dtype's rounding,
    # once for the division, and in float64 once for each addition here.
    step = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-23, "float64": 0.0}[dtype]
    seen = alive & (count > 0)
    per_draw = total[seen] / count[seen] * p[seen]
    subnormal = 2.0**-24 if dtype == "float16" else 0.0
    bound = np.maximum((2 * step + seeds * 2.0**-52) * np.abs(A[seen]), subnormal)
    assert (np.abs(per_draw - A[seen]) <= bound).all()


def test_mean_over_seeds_of_sparsify() -> None:
    """The pipeline itself biased, in a stage that the kernels' own tests do not see."""
    A = np.random.default_rng(3).standard_normal((64, 64)).astype(np.float32)
    _, p = solved(case(A, "float32"), Shape.L1, BUDGET_SHARE)
    seeds = 200
    total = np.zeros(A.shape)
    for seed in range(seeds):
        total += sparsify(A, sparsity=1 - BUDGET_SHARE, law="l1", rescale=True, seed=seed).weight
    deviation = np.abs(A) * np.sqrt((1 - p) / (p * seeds))
    # Linear functionals, so that the normal bound holds: every row, column and random sign.
    signs = np.random.default_rng(4).choice([-1.0, 1.0], (64, A.size))
    tests = np.concatenate([np.kron(np.eye(64), np.ones(64)), np.kron(np.ones(64), np.eye(64)),
                            signs])  # fmt: skip
    error = tests @ (total / seeds - A).ravel()
    spread = np.sqrt(tests**2 @ (deviation**2).ravel())
    bound = stats.norm.isf(SIGNIFICANCE / 2 / len(tests))
    assert (np.abs(error) < bound * spread + 1e-5).all()


def keep_decisions(places: list[dict[str, int]], m: int, n: int) -> NDArray[np.bool_]:
    """(places, m * n): which entries of a constant matrix are kept, each with p = 0.3."""
    one = case(np.ones((m, n)), "float32")
    scale = oracle.Scale(BUDGET_SHARE * UNIT)
    draw = Sampler(one, Shape.L1, scale, rescale=False)
    return np.array([draw(**place)[0].ravel() != 0 for place in places])


def z_scores(kept: NDArray[np.bool_], other: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Standardised covariances of the columns of `kept` with those of `other`."""
    p = math.floor(BUDGET_SHARE * UNIT) / UNIT
    product: NDArray[np.float64] = (kept - p).T @ (other - p)
    return product / (p * (1 - p) * math.sqrt(len(kept)))


def independent(z: NDArray[np.float64]) -> bool:
    return bool(np.abs(z).max() < stats.norm.isf(SIGNIFICANCE / 2 / z.size))


def test_entries_are_pairwise_independent() -> None:
    """Words of one quad, of neighbouring quads, of rows or of columns that share a counter."""
    # 500 places of 6 rows under each of 10 seeds, one call a seed.
    places = [{"seed": seed, "stream": 5} for seed in range(10)]
    kept = keep_decisions(places, 500 * 6, 24).reshape(5000, 6 * 24)
    z = z_scores(kept, kept)
    pairs = z[np.triu_indices(len(z), 1)]
    assert pairs.size == 144 * 143 // 2
    assert independent(pairs)
    # The test can see dependence: an entry with itself.
    assert not independent(np.diag(z))


@pytest.mark.parametrize(
    "name", ["seed", "upper seed", "stream", "named stream", "row", "upper row", "column"]
)
def test_neighbouring_places_are_independent(name: str) -> None:
    """Seeds, streams or offsets that are added up, so that one's draws are another's shifted."""
    ranks = range(60)
    place: dict[str, list[dict[str, int]]] = {
        "seed": [{"seed": k} for k in ranks],
        "upper seed": [{"seed": k << 32} for k in ranks],
        "stream": [{"stream": k} for k in ranks],
        "named stream": [{"stream": stream_id(f"layers.{k}.weight")} for k in ranks],
        "row": [{"row": 40 * k} for k in ranks],
        "upper row": [{"row": k << 32} for k in ranks],
        "column": [{"column": 100 * k} for k in ranks],
    }
    kept = keep_decisions(place[name], 40, 100).T
    z = z_scores(kept, kept)
    assert independent(z[np.triu_indices(len(z), 1)])
    # And no shift by a row, a column or a quad lines them up.
    for shift in (1, 4, 100):
        assert independent(z_scores(kept[shift:], kept[:-shift]))


def test_seed_and_stream_do_not_mix() -> None:
    """A key of seed + stream or seed xor stream, under which (1, 2) draws as (2, 1) does."""
    places = [{"seed": a, "stream": b} for a in range(8) for b in range(8)]
    kept = keep_decisions(places, 40, 100).T
    z = z_scores(kept, kept)
    assert independent(z[np.triu_indices(len(z), 1)])


@pytest.mark.parametrize("law", ["l1", "l2", "hybrid", "row-l1", "bernstein", "am07", "trimmed-l2"])
def test_reached_count(law: str) -> None:
    """More or fewer kept than a sum of independent draws can be, by Bernstein's inequality."""
    A = np.random.default_rng(5).standard_normal((300, 400)).astype(np.float32)
    for k, sparsity in enumerate((0.5, 0.9, 0.99, 0.999)):
        budget = A.size - round(sparsity * A.size)
        for seed in range(5):
            out = sparsify(A, sparsity=sparsity, law=law, rescale=True, seed=100 * k + seed)
            # The variance of a sum of Bernoulli draws is at most its mean; 1e-3 is the budget's.
            log_term = math.log(2 * 4 * 5 / SIGNIFICANCE)
            bound = log_term / 3 + math.sqrt(log_term**2 / 9 + 2 * budget * log_term)
            assert abs(out.nnz - budget) <= bound + 1e-3 * budget
            assert out.nnz == np.count_nonzero(out.weight)


def test_reached_counts_vary_as_they_must() -> None:
    """Draws that are not independent: counts over seeds too even, or too wild."""
    one = case(mixed_values((60, 60), 6), "float32")
    scale, p = solved(one, Shape.L1, BUDGET_SHARE)
    draw = Sampler(one, Shape.L1, scale, rescale=False)
    counts = np.array([draw(seed=seed)[1] for seed in range(1000)])
    variance = (p * (1 - p)).sum()
    z = (counts.mean() - p.sum()) / math.sqrt(variance / len(counts))
    assert abs(z) < stats.norm.isf(SIGNIFICANCE / 4)
    ratio = ((counts - p.sum()) ** 2).sum() / variance
    low, high = stats.chi2.ppf([SIGNIFICANCE / 4, 1 - SIGNIFICANCE / 4], len(counts))
    assert low < ratio < high


def test_uniform_words() -> None:
    """A bit of the draw that is stuck, seen through probabilities that are powers of two."""
    one = case(np.ones((64, 1024)), "float32")
    for bit in range(1, 12):
        scale = oracle.Scale(2.0 ** (24 - bit))
        _, kept = Sampler(one, Shape.L1, scale, rescale=False)(seed=bit)
        p = np.array([2.0**-bit])
        assert two_sided(np.array([kept]), 64 * 1024, p)[0] > SIGNIFICANCE / 11
