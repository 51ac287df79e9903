"""Block Golub-Kahan bidiagonalization: the Krylov space of A, and when to stop growing it.

From a random block V_0 the spaces of V_0, A^T A V_0, (A^T A)^2 V_0, ... and of their images under
A are built with orthonormal bases V and U, and with them the projection T = U^T A V, whose
singular values approach the leading ones of A from below. Slow decay, which weights have, is
where a Krylov space beats subspace iteration: it converges with the square root of the gap.

Sources: Golub, Luk, Overton, "A block Lanczos method for computing the singular values and
corresponding singular vectors of a matrix", ACM TOMS 7 (1981); Musco and Musco, "Randomized block
Krylov methods for stronger and faster approximate singular value decomposition", NeurIPS 2015;
Tropp and Webber, "Randomized algorithms for low-rank matrix approximation" (2023), section on
randomized block Krylov iteration.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import pairwise, takewhile

import array_api_compat

from spectral_kernels.spectra import _small
from spectral_kernels.spectra._arrays import Array, Namespace, test_matrix
from spectral_kernels.spectra._operators import Operator
from spectral_kernels.spectra._orthonormal import orthonormalise

#: The rounding error of a value beside the noise, in machine epsilons of the largest value.
ROUNDING = 8
#: The slowest convergence that the error estimate believes in: a factor a half step.
SLOWEST = 0.95
#: How many changes of the values, over one product and over two, an estimate needs before it is
#: believed. In a nearly flat spectrum the first changes are small, whatever the error.
CHANGES = {1: 3, 2: 2}
#: From this many products on, the values are looked at after every second one.
SPARSE = 16
#: What the estimate is multiplied by. In 2,016 runs (56 spectra, ranks 4 to 100, tolerances 1e-2 to
#: 1e-5, blocks of the default size, two seeds) 25 errors were above the tolerance: one by a fifth,
#: 24 where somewhat more values than a wide block has columns lie within .1 to 5 % of each other,
#: by .08 to .38 of what these differ. A plain extrapolation had twenty in a hundred of 550 others.
SAFETY = 2.0
#: The whole matrix is factored where it has fewer columns than SMALL blocks (of the wider size), or
#: once the space holds this share, ROOM, of its columns.
SMALL = 6
ROOM = 0.75
#: A block of b columns finds at most b copies of a value. Where b values lie closer together than
#: this share of the largest, there may be more of them. Copies were seen missed, or found only
#: after the others had settled, where b values were within 5e-4.
CROWDED = 5e-3


def rounding(values: Array, operator: Operator) -> Array:
    """The error that rounding leaves in values (..., k) of the operator, the largest first.

    Rounding perturbs A by a matrix E with ||E||_2 about eps sqrt(m + n) sigma_1. To first order
    that moves sigma_i by u_i^T E v_i, a few eps sigma_1; values below ||E||_2 drown in it.
    """
    m, n = operator.shape[-2:]
    eps = float(operator.xp.finfo(operator.like.dtype).eps)
    top = values[..., :1] if operator.noise is None else operator.noise
    noise = eps * math.sqrt(m + n) * top
    tiny = float(operator.xp.finfo(values.dtype).smallest_normal)
    return ROUNDING * eps * top + noise * (noise / (values + noise + tiny))


@dataclass(frozen=True)
class Space:
    """Orthonormal U (..., m, p) and V (..., n, q), and T = U^T A V (..., p, q).

    After an odd number of products p = q and A V = U T; after an even number q = p + b and
    A^T U = V T^T. T is block bidiagonal.
    """

    U: Array
    V: Array
    T: Array
    products: int


def half_steps(operator: Operator, block: int, seed: int, stream: int) -> Iterator[Space]:
    """The growing space, one block product with A or A^T at a time; without end.

    The bases are kept orthonormal in full (both sides, every half step): in working precision the
    recurrence alone loses orthogonality as soon as a value converges.
    """
    xp = operator.xp
    m, n = operator.shape[-2:]

    def draw(rows: int, column_offset: int) -> Array:
        start = test_matrix(
            xp, (rows, block), seed, stream, column_offset=column_offset, like=operator.like
        )
        return xp.broadcast_to(start, (*operator.shape[:-2], rows, block))

    V, _ = orthonormalise(xp, draw(n, 0), None, partial(draw, n, block))
    U, T = None, None
    new, products = V, 0
    while True:
        products += 1
        spare = partial(draw, m if products % 2 else n, (products + 1) * block)
        if products % 2:
            new, R = orthonormalise(xp, operator @ new, U, spare)
            U = new if U is None else xp.concat([U, new], axis=-1)
            T = R if T is None else _append_rows(xp, T, R)
        else:
            new, R = orthonormalise(xp, operator.T @ new, V, spare)
            V = xp.concat([V, new], axis=-1)
            T = xp.matrix_transpose(_append_rows(xp, xp.matrix_transpose(T), R))
        yield Space(U, V, T, products)


def _append_rows(xp: Namespace, T: Array, R: Array) -> Array:
    """[[T], [0, R]]."""
    shape = (*R.shape[:-1], T.shape[-1] - R.shape[-1])
    zeros = xp.zeros(shape, dtype=R.dtype, device=array_api_compat.device(R))
    return xp.concat([T, xp.concat([zeros, R], axis=-1)], axis=-2)


def shortfall(
    xp: Namespace, values: list[Array], floor: Array, slowest: float, enough: bool
) -> Array:
    """By how much the first of `values`, each (..., rank), is low: see `Convergence`.

    values: at equal distances, the newest first
    floor: the changes (..., rank) that rounding makes
    slowest: the largest factor from a change to the next that is believed
    enough: whether these are changes enough to believe a small factor
    """
    changes, worst = [], []
    for after, before in pairwise(values):
        change = xp.abs(after - before)
        changes.append(xp.where(change > floor, change, 0.0))
        tiny = float(xp.finfo(after.dtype).smallest_normal)
        worst.append(xp.max(changes[-1] / (after + tiny), axis=-1, keepdims=True) + tiny)
    last, *older = worst
    rate = xp.full_like(last, 0.0 if enough else 0.5)
    for i, earlier in enumerate(older, 1):
        rate = xp.maximum(rate, (last / earlier) ** (1 / i))
    rate = xp.where(rate < slowest, rate, slowest)
    change = changes[0]
    if older:
        change = xp.maximum(change, changes[1] * rate)
    return SAFETY * change * (rate / (1 - rate))


class Convergence:
    """The leading values of a growing space, and an estimate of the error of each.

    Every product raises every value. Where the last one raised value i by c_i and each later one
    raises it by a factor r of the one before, the value is low by c_i r / (1 - r). The factor is
    measured on the worst relative change, over the last one and the last two, and the larger is
    taken; with fewer changes than `CHANGES` it is at least 1/2. In a spectrum without gaps a value
    may pause on its way up, so r times the change before stands in for c_i where that is larger,
    and the sum is taken `SAFETY` times. What rounding adds is in `rounding`.

    Odd and even products converge unevenly; where all values lie within a few per cent of each
    other, the even ones change nothing that rounding would show. So the same is done with the
    changes over two products, and the larger estimate is taken. The values of a large space cost
    as much as its next product: from the `SPARSE`-th on they are looked at after every second.
    """

    def __init__(self, operator: Operator, rank: int) -> None:
        self.operator, self.rank = operator, rank
        self.values: Array = None
        self.error: Array = None
        self._floor: Array = None
        self._seen: dict[int, Array] = {}
        self._believed = False

    def due(self, products: int) -> bool:
        """Whether the values are to be looked at after so many products."""
        latest = max(self._seen, default=0)
        return products >= latest + (1 if latest < SPARSE else 2)

    def update(self, T: Array, products: int) -> None:
        """Take in the space after so many products, T = U^T A V with p, q >= rank."""
        xp = self.operator.xp
        self._seen[products] = self.values = _small.values(xp, T)[..., : self.rank]
        self._floor = rounding(self.values, self.operator)
        estimates, self._believed = [], False
        for stride, changes in CHANGES.items():
            back = range(products, products - (changes + 1) * stride, -stride)
            last = [self._seen[at] for at in takewhile(self._seen.__contains__, back)]
            if len(last) > 1:
                enough = len(last) > changes
                estimates.append(shortfall(xp, last, self._floor, SLOWEST**stride, enough))
                self._believed |= enough
        if estimates:
            self.error = reduce(xp.maximum, estimates) + self._floor

    def reached(self, tolerance: float) -> bool:
        """Whether every value of every matrix is known to `tolerance`, relative, or to rounding."""
        return self._believed and bool(
            self.operator.xp.all(self.error <= tolerance * self.values + 2 * self._floor)
        )

    def crowded(self, block: int) -> bool:
        """Whether `block` values in a row, of any matrix, lie so close that more may be hidden.

        Copies of the last wanted values do not matter, nor of those that drown in rounding.
        """
        first, last = self.values[..., :-block], self.values[..., block - 1 : -1]
        known = first > 2 * self._floor[..., :-block]
        return bool(self.operator.xp.any(known & (first - last <= CROWDED * first)))


@dataclass(frozen=True, kw_only=True)
class KrylovSpec:
    """What is asked of a Krylov space; see `svd.randomized_svd`.

    block: columns of a block; wider: of those to begin again with where values crowd together
    """

    rank: int
    tolerance: float | None
    depth: int | None
    block: int
    wider: int
    seed: int
    stream: int


def converge(operator: Operator, spec: KrylovSpec) -> tuple[Space, Convergence] | None:
    """The space in which the leading values are known to the tolerance, or that has the depth.

    None where the space would take up so many of the n columns that factoring the whole matrix
    is cheaper.
    """
    columns, rank, block = min(operator.shape[-2:]), spec.rank, spec.block
    if spec.depth is None:
        last, room = None, ROOM * columns if SMALL * spec.wider <= columns else 0
    else:
        last, room = 2 * spec.depth, columns if (spec.depth + 1) * block <= columns else 0
    if room < 2 * block:
        return None
    state, tolerance = Convergence(operator, rank), spec.tolerance
    for space in half_steps(operator, block, spec.seed, spec.stream):
        ending = last is not None and space.products >= last - 3
        if space.T.shape[-2] >= rank and (
            ending or (tolerance is not None and state.due(space.products))
        ):
            state.update(space.T, space.products)
            if block < min(rank, spec.wider) and state.crowded(block):
                return converge(operator, replace(spec, block=spec.wider))
            if tolerance is not None and state.reached(tolerance):
                return space, state
        if space.products == last:
            return space, state
        if space.products % 2 == 0 and space.V.shape[-1] + block > room:
            break
    return None
