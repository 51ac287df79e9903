"""A budget shared out: how much of each layer is kept when all together keep a given number.

Read off one curve of magnitudes a layer (`spectral_kernels.magnitude_curve`), so that one pass over
the weights, one at a time, is all that it needs. `Spectral` minimises the sum over layers of
||S - A||_F^2 / ||A||_F^2: keeping an entry takes A_ij^2 / ||A||_F^2 off it, so that the best set
keeps the largest of these, in whatever layer. Its threshold and that of `Global` are found to a bin
of the curve; the entries of a bin (3 % wide) count as alike. The magnitudes decide, whatever a
method scores by.

No layer keeps less than a floor, so that none collapses. Totals are exact: the numbers of entries
kept add up to size - round(sparsity * size) of all layers together.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from spectral_kernels import NM, Blocks, MagnitudeCurve, entries_to_keep, magnitude_curve

from spectral_engine.distributed.groups import rank_of, size_of, steps
from spectral_engine.distributed.owners import errors_of_all, gathered_objects
from spectral_engine.recipe.budgets import ERK, Budget, MaxError, Pattern, Shared, Spectral

#: The floor where none is given, as a share of the density of all layers together.
FLOOR_SHARE = 0.1

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]


class Weight(NamedTuple):
    """A weight to share a budget with: its name, how to read it, and its shape as it is stored."""

    name: str
    load: Callable[[], Any]
    shape: Sequence[int]


@dataclass(frozen=True)
class LayerCurve:
    """What allocation needs of a layer: its magnitudes, and the shape of the weight as stored."""

    name: str
    shape: tuple[int, ...]
    curve: MagnitudeCurve

    @classmethod
    def of(cls, weight: Weight) -> "LayerCurve":
        """The curve of a weight of two dimensions or more, which is read for it.

        Raises:
            TypeError, ValueError: no array that can be sparsified, or entries that are not finite.
        """
        return cls(weight.name, tuple(weight.shape), magnitude_curve(weight.load(), weight.name))

    @property
    def size(self) -> int:
        """Entries of the layer."""
        return int(self.curve.counts.sum())


def shares_of(budget: Budget, weights: Sequence[Weight], group: Any = None) -> dict[str, float]:
    """The sparsity of each weight; they are read, one at a time, only where it takes that.

    Args:
        budget: of all of them together.
        weights: the same on every process of the group.
        group: processes that share the reading out; each curve is of a whole weight, in integers,
            so that the result does not hang on who has read it.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.
    """
    if budget.share is not None:
        return {weight.name: budget.share for weight in weights}
    shared = budget.shared if isinstance(budget, Pattern) else budget
    if not isinstance(shared, Shared | MaxError):
        raise TypeError(f"budget: expected one that layers share; got {budget!r}")
    return allocate(_curves(weights, group), shared)


def _curves(weights: Sequence[Weight], group: Any) -> list[LayerCurve]:
    """The curve of each weight, read by one process of a group and known to all."""
    own, processes = rank_of(group), size_of(group)
    shared = steps([float(math.prod(weight.shape)) for weight in weights], processes)
    found: dict[int, LayerCurve] = {}
    with errors_of_all(group):
        for index in sorted(step[own] for step in shared if own < len(step)):
            found[index] = LayerCurve.of(weights[index])
    for told in gathered_objects(found, group):
        found.update(told)
    return [found[index] for index in range(len(weights))]


def _target(budget: Budget) -> float:
    target = budget.target
    if target is None:
        raise ValueError(f"budget: expected one with a sparsity; got {budget!r}")
    return target


def allocate(layers: Sequence[LayerCurve], budget: Shared | MaxError) -> dict[str, float]:
    """The sparsity of each layer, by name.

    Args:
        layers: at least one, of different names.
        budget: `Global`, `ERK`, `Spectral` or `MaxError`. The bound of the last holds, and is met
            to about 1e-3 of it, where the largest magnitudes are kept. A floor is never less than
            one entry.

    Raises:
        ValueError: the floor leaves more than the sparsity does.
    """
    sizes = np.array([layer.size for layer in layers], np.int64)
    if isinstance(budget, MaxError):
        least = _least(sizes, 0.0 if budget.floor is None else budget.floor)
        kept = _within_error(layers, budget.error, least, together=budget.together)
        return _sparsities(layers, sizes, kept)
    sparsity = _target(budget)
    count = entries_to_keep(int(sizes.sum()), sparsity)
    floor = FLOOR_SHARE * (1.0 - sparsity) if budget.floor is None else budget.floor
    least = _least(sizes, floor)
    if int(least.sum()) > count:
        raise ValueError(
            f"floor: layers would keep {int(least.sum())} entries at the least, and sparsity "
            f"{sparsity} leaves {count} of {int(sizes.sum())}; expected a lower floor or sparsity"
        )
    if isinstance(budget, ERK):
        weights = np.array([float(sum(layer.shape)) for layer in layers])
        return _sparsities(layers, sizes, _in_proportion(weights, least, sizes, count))
    spectral = isinstance(budget, Spectral)
    scales = [_inverse_energy(layer) if spectral else 1.0 for layer in layers]
    table = _Table.of(layers, least, scales)
    return _sparsities(layers, sizes, least + table.largest(count - int(least.sum())))


def clamp_nonempty(sparsity: float, m: int, n: int, budget: Budget) -> float:
    """The sparsity of a layer (m, n), or the most that leaves it an entry where that leaves none.

    With group "row" every row keeps one entry, and with a pattern of blocks one block.
    """
    pattern = budget.pattern
    if isinstance(pattern, NM):
        return sparsity
    if isinstance(pattern, Blocks):
        m, n = m // pattern.rows, n // pattern.columns
    units = n if budget.group == "row" else m * n
    return sparsity if entries_to_keep(units, sparsity) else (units - 1) / units


def mean_sparsity(weights: Iterable[tuple[float, int]]) -> float:
    """The fraction of zeros of all layers together, from that of each and its size."""
    pairs = list(weights)
    return math.fsum(share * size for share, size in pairs) / sum(size for _, size in pairs)


def _least(sizes: Int64, floor: float) -> Int64:
    """The least number of entries of each layer."""
    least: Int64 = np.maximum(np.ceil(floor * sizes).astype(np.int64), 1)
    return least


def _sparsities(layers: Sequence[LayerCurve], sizes: Int64, kept: Int64) -> dict[str, float]:
    return {
        layer.name: (int(size) - int(count)) / int(size)
        for layer, size, count in zip(layers, sizes, kept, strict=True)
    }


def _inverse_energy(layer: LayerCurve) -> float:
    """1 / ||A||_F^2, and 0 for a layer of zeros; from the lower bound, so that shares are upper."""
    energy = math.fsum(layer.curve.least)
    return 1.0 / energy if energy > 0.0 else 0.0


@dataclass(frozen=True)
class _Table:
    """The bins of some layers over and above what their floors keep; by gain, from high to low.

    owner: the layer's index. counts: entries. cost, each: bounds of what dropping them all, or one
    of them, adds to the error.
    """

    layers: int
    owner: Int64
    counts: Int64
    cost: Float64
    each: Float64

    @classmethod
    def of(cls, layers: Sequence[LayerCurve], least: Int64, scales: Sequence[float]) -> "_Table":
        owner, counts, gains, cost, each = [], [], [], [], []
        for i, (layer, floor, scale) in enumerate(zip(layers, least, scales, strict=True)):
            curve = layer.curve
            # The floor takes the largest entries.
            rest = np.minimum(np.maximum(np.cumsum(curve.counts) - floor, 0), curve.counts)
            owner.append(np.full(rest.size, i))
            counts.append(rest)
            gains.append(scale * curve.squares / np.maximum(curve.counts, 1))
            cost.append(scale * np.minimum(curve.most, rest * curve.largest))
            each.append(scale * curve.largest)
        order = np.argsort(-np.concatenate(gains), kind="stable")
        return cls(
            len(layers),
            np.concatenate(owner)[order],
            np.concatenate(counts)[order],
            np.concatenate(cost)[order],
            np.concatenate(each)[order],
        )

    def largest(self, budget: int) -> Int64:
        """How many of each layer are among the `budget` entries of largest gain."""
        before = np.cumsum(self.counts) - self.counts
        return self._by_layer(np.clip(budget - before, 0, self.counts))

    def smallest(self, allowed: float) -> Int64:
        """How many of each layer can be dropped, from the least gain on, at a cost of `allowed`."""
        cost, counts, each = self.cost[::-1], self.counts[::-1], self.each[::-1]
        spent = np.cumsum(cost)
        whole = int(np.searchsorted(spent, allowed, side="right"))
        dropped = np.where(np.arange(counts.size) < whole, counts, 0)
        if whole < counts.size:
            left = allowed - (spent[whole - 1] if whole else 0.0)
            dropped[whole] = min(int(left / each[whole]), int(counts[whole]))
        return self._by_layer(dropped[::-1])

    def _by_layer(self, values: Int64) -> Int64:
        totals = np.zeros(self.layers, np.int64)
        np.add.at(totals, self.owner, values)
        return totals


def _within_error(
    layers: Sequence[LayerCurve], max_error: float, least: Int64, *, together: bool
) -> Int64:
    """How many entries each layer keeps, as few as the error allows."""
    scales = [_inverse_energy(layer) for layer in layers]
    sizes = np.array([layer.size for layer in layers], np.int64)
    allowed = max_error * max_error
    if together:
        return sizes - _Table.of(layers, least, scales).smallest(allowed * len(layers))
    dropped = [
        _Table.of([layer], least[i : i + 1], scales[i : i + 1]).smallest(allowed)[0]
        for i, layer in enumerate(layers)
    ]
    return sizes - np.array(dropped, np.int64)


def _in_proportion(weights: Float64, least: Int64, most: Int64, budget: int) -> Int64:
    """Integers in proportion to `weights`, but from `least` to `most`, that sum to `budget`."""
    low, high = 0.0, float((most / weights).max())
    for _ in range(200):
        middle = 0.5 * (low + high)
        if float(np.clip(middle * weights, least, most).sum()) < budget:
            low = middle
        else:
            high = middle
    exact = np.clip(low * weights, least, most)
    kept = np.floor(exact).astype(np.int64)
    # What rounding down leaves goes to the largest fractions; ties to the earlier layer.
    for i in np.argsort(-(exact - kept), kind="stable"):
        more = min(budget - int(kept.sum()), 1, int(most[i] - kept[i]))
        kept[i] += max(more, 0)
    return kept
