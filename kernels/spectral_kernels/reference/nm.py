"""N of every M: the patterns that sparse matrix units multiply with, 2:4 above all.

A group is M consecutive columns of one row, the first at a multiple of M; N of its entries are
kept. The functions here are the NumPy oracle; every step is an integer or one rounded float32
operation on the M values of a group, summed in the order of their columns.

**Largest.** The N largest scores, the earlier column first among equals: exactly N of every group.

**Drawn.** Without replacement, with probabilities p = min(1, c g(s)) that sum to N in each group
(g is s or s^2, law "l1" or "l2"). p is made a multiple t of 2^-24, and the rounding's remainder is
given to the first entries with room, so that the t of a group sum to N 2^24 exactly. Then
systematic sampling in random order (Goodman, Kish, JASA 1950; Hartley, Rao, Ann. Math. Stat.
1962): the entries are laid end to end, from `start` on, as intervals (x, x + t], and those in which
a multiple of 2^24 lies are kept. So N are kept in every draw, and the probability of an entry is
t / 2^24 exactly, whatever the order: rescaling by it is exactly unbiased.

The words of the stream (see `stream`) that a group uses are those of its own entries: `start` is
the upper 24 bits of its first entry's word; the order is by the low 8 bits of each entry's word,
the earlier column first among equals. The two are independent.

Scores below 2^-40 of their group's largest count as 0, and what scores 0 is never drawn: a group
with fewer than N others keeps just those.
"""

import numpy as np
from numpy.typing import NDArray

from spectral_kernels.reference.laws import Shape
from spectral_kernels.reference.stream import UNIT

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
UInt32 = NDArray[np.uint32]
Bool = NDArray[np.bool_]

#: The widest group: sums of t stay within 31 bits.
WIDEST = 64
#: The least score that counts, as a share of the group's largest.
LEAST = 2.0**-40
ORDER_MASK = 0xFF


def largest(s: Float32, keep: int, of: int) -> Bool:
    """The mask (m, n) of the `keep` largest scores in each group of `of` columns.

    An entry is kept where fewer than `keep` of its group come before it: those that score more,
    and those of earlier columns that score the same.
    """
    g = s.reshape(-1, of)
    rank = np.zeros(g.shape, np.int32)
    for a in range(of):
        for b in range(a + 1, of):
            later = g[:, b] > g[:, a]
            rank[:, a] += later
            rank[:, b] += ~later
    return (rank < keep).reshape(s.shape)


def weights(s: Float32, shape: Shape, of: int) -> Float32:
    """g(x) (groups, of), x = s scaled by the power of two that brings the largest into [1, 2).

    As in `budget`: [2, 4) at the very end of the range of float32, less than 1 for subnormals.
    """
    g = s.reshape(-1, of)
    exponent = g.max(axis=1).view(np.uint32) >> np.uint32(23)
    scale = ((np.uint32(254) - np.clip(exponent, 1, 253)) << np.uint32(23)).astype(np.uint32)
    x = g * scale.view(np.float32)[:, None]
    x = np.where(x >= np.float32(LEAST) * x.max(axis=1)[:, None], x, np.float32(0))
    return x if shape == Shape.L1 else x * x


def inclusion(s: Float32, shape: Shape, keep: int, of: int) -> Int32:
    """t (m, n): an entry is kept with probability t / 2^24; a group's t sum to `keep` 2^24.

    Or to 2^24 times its entries of positive weight, where these are fewer than `keep`.
    """
    g = weights(s, shape, of)
    budget = np.minimum(keep, (g > 0).sum(axis=1)).astype(np.int32)
    capped = np.zeros(g.shape, bool)
    left, rest = _uncapped(g, capped, budget)
    # Each step caps one entry at least, or else none any more.
    for _ in range(keep):
        capped |= (g > 0) & (left[:, None] * g >= rest[:, None])
        left, rest = _uncapped(g, capped, budget)
    c = np.divide(left * np.float32(UNIT), rest, out=np.zeros_like(rest), where=rest > 0)
    t = np.minimum(np.floor(c[:, None] * g), np.float32(UNIT)).astype(np.int32)
    t[capped] = UNIT
    spare = budget * np.int32(UNIT) - t.sum(axis=1, dtype=np.int32)
    for k in range(of):
        inside = (t[:, k] > 0) & (t[:, k] < UNIT)
        more = np.where(inside, np.clip(spare, -t[:, k], UNIT - t[:, k]), 0)
        t[:, k] += more
        spare -= more
    inclusions: Int32 = t.reshape(s.shape)
    return inclusions


def _uncapped(g: Float32, capped: Bool, budget: Int32) -> tuple[Float32, Float32]:
    """How many are still to be kept of the entries under the cap, and the sum of these."""
    rest = np.zeros(len(g), np.float32)
    for k in range(g.shape[1]):
        rest = rest + np.where(capped[:, k], np.float32(0), g[:, k])
    return (budget - capped.sum(axis=1)).astype(np.float32), rest


def drawn(t: Int32, words: UInt32, of: int) -> Bool:
    """The mask (m, n) of what is drawn, given the entries' words (m, n) of the stream."""
    steps, word = t.reshape(-1, of), words.reshape(-1, of)
    order = word & np.uint32(ORDER_MASK)
    before = np.repeat((word[:, :1] >> np.uint32(8)).astype(np.int32), of, axis=1)
    for a in range(of):
        for b in range(a + 1, of):
            swapped = order[:, b] < order[:, a]
            before[:, b] += np.where(swapped, 0, steps[:, a])
            before[:, a] += np.where(swapped, steps[:, b], 0)
    keep: Bool = (before + steps) // UNIT > before // UNIT
    return keep.reshape(t.shape)
