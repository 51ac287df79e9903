"""The budget across layers: how much of each is kept when all of them together keep a given number.

Read off one histogram of magnitudes a layer (`spectral_kernels.histogram`), so that a first pass
over the weights, one at a time, is all that it needs:

| allocation | keeps                                                                               |
|------------|-------------------------------------------------------------------------------------|
| uniform    | the same share of every layer                                                       |
| global     | what is over one threshold on |A|, in all layers                                    |
| erk        | in proportion to the sum of a weight's dimensions, at most all (Erdos-Renyi-kernel, |
|            | Evci, Gale, Menick, Castro, Elsen, arXiv 1911.11134)                                |
| spectral   | what is over one threshold on |A| / ||A||_F                                         |

The last minimises the sum over layers of ||S - A||_F^2 / ||A||_F^2: keeping an entry takes
A_ij^2 / ||A||_F^2 off it, so that the best set keeps the largest of these, in whatever layer. Both
thresholds are found to a bin of the histogram, entries of a bin (3 % wide) counting as alike.

No layer keeps less than a floor, so that none collapses. Totals are exact: the numbers of entries
kept add up to size - round(sparsity * size) of all layers together.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import spectral_kernels
from numpy.typing import NDArray
from spectral_kernels.reference.budget import FINITE_BINS, LOW_BITS, bin_moments, value_of
from spectral_kernels.reference.patterns import NM, Blocks, parse_pattern, pattern_sparsity

ALLOCATIONS = ("uniform", "global", "erk", "spectral")
#: The floor where none is given, as a share of the density of all layers together.
FLOOR_SHARE = 0.1
#: The exponent of 1, by which `budget` scales nothing.
_TOP = 127

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]
#: A name, how to get the weight, and its shape as it is stored.
Weight = tuple[str, Callable[[], Any], Sequence[int]]


@dataclass(frozen=True)
class LayerCurve:
    """What allocation needs of a layer: its entries in bins of magnitude, from large to small.

    shape: of the weight as it is stored. counts: entries of each bin, zeros in the last one.
    squares: the sum of squares of each bin, to 2e-4; `least` and `most` are bounds of it, and
    `largest` is one of a single square.
    """

    name: str
    shape: tuple[int, ...]
    counts: Int64
    squares: Float64
    least: Float64
    most: Float64
    largest: Float64

    @property
    def size(self) -> int:
        """Entries of the layer."""
        return int(self.counts.sum())


def layer_curve(name: str, weight: Any, shape: Sequence[int] | None = None) -> LayerCurve:
    """The curve of a weight of two dimensions or more; `shape` is its own if not given.

    Raises:
        TypeError, ValueError: no array that can be sparsified, or entries that are not finite.
    """
    count, low = spectral_kernels.histogram(weight)
    if count[FINITE_BINS:].any():
        raise ValueError(f"{name}: expected finite entries that fit float32; got others")
    bins = np.flatnonzero(count)[::-1]
    zeros = math.prod(weight.shape) - int(count.sum())
    columns = []
    for b in map(int, bins):
        n, bottom, top = (
            int(count[b]),
            value_of(b << LOW_BITS, _TOP),
            value_of(b + 1 << LOW_BITS, _TOP),
        )
        total, squares = bin_moments(n, int(low[b]), b, _TOP)
        mean = total / n
        # Bhatia-Davis: no variance is over (mean - bottom) (top - mean).
        most = n * (mean * mean + (mean - bottom) * (top - mean))
        columns.append((squares, n * mean * mean, most, top * top))
    columns.append((0.0, 0.0, 0.0, 0.0))
    return LayerCurve(
        name,
        tuple(weight.shape if shape is None else shape),
        np.append(count[bins], zeros),
        *np.array(columns).T,
    )


@dataclass(frozen=True)
class Goal:
    """What all layers together are pruned to: a sparsity, or an error; see `allocate`."""

    sparsity: float | None
    kind: str
    floor: float | None
    max_error: float | None

    @classmethod
    def of(
        cls,
        sparsity: float | None,
        default: float,
        pattern: str | None,
        kind: str,
        floor: float | None,
        max_error: float | None,
    ) -> "Goal":
        """From the arguments of `prune`, checked.

        Raises:
            TypeError, ValueError: name the argument, what was expected and what came.
        """
        if pattern is not None and isinstance(parse_pattern(pattern), NM):
            for value, usual, name in (
                (kind, "uniform", "allocation"), (floor, None, "floor"),
                (max_error, None, "max_error"),
            ):  # fmt: skip
                if value != usual:
                    raise ValueError(
                        f"{name}: pattern {pattern!r} gives every layer its sparsity, so expected "
                        f"{usual!r}; got {value!r}"
                    )
        if max_error is None:
            sparsity = pattern_sparsity(pattern, sparsity, float(default))
        check_allocation(kind, sparsity, floor, max_error)
        return cls(sparsity, kind, floor, max_error)

    @property
    def options(self) -> dict[str, Any]:
        """Plain values, for a report."""
        return {"allocation": self.kind, "floor": self.floor, "max_error": self.max_error}

    def sparsities(self, weights: Iterable[Weight]) -> dict[str, float]:
        """The sparsity of each weight; they are loaded, one at a time, only where it takes that."""
        if self.kind == "uniform" and self.sparsity is not None:
            _check_uniform(self.sparsity, self.floor)
            return {name: self.sparsity for name, _, _ in weights}
        curves = [layer_curve(name, load(), shape) for name, load, shape in weights]
        return allocate(
            curves, self.sparsity, self.kind, floor=self.floor, max_error=self.max_error
        )


def check_allocation(
    kind: str, sparsity: float | None, floor: float | None, max_error: float | None
) -> None:
    """Refuse arguments that `allocate` cannot use, before any weight is read.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.
    """
    if not isinstance(kind, str) or kind not in ALLOCATIONS:
        raise ValueError(f"allocation: expected one of {', '.join(ALLOCATIONS)}; got {kind!r}")
    ranges = (
        (floor, "floor", "relative density in [0, 1]", 1.0),
        (max_error, "max_error", "relative error in [0, 1)", np.nextafter(1.0, 0.0)),
    )
    for value, name, expected, most in ranges:
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float | np.floating):
            raise TypeError(f"{name}: expected a number or None; got {type(value).__name__}")
        if not 0.0 <= value <= most:
            raise ValueError(f"{name}: expected a {expected}; got {value!r}")
    if max_error is None:
        spectral_kernels.entries_to_keep(1, sparsity)
        return
    if sparsity is not None:
        raise ValueError(
            f"max_error: decides the sparsity, so expected sparsity=None; got {sparsity!r}"
        )
    if kind not in ("uniform", "spectral"):
        raise ValueError(f"max_error: allocation 'uniform' or 'spectral' meets it; got {kind!r}")


def allocate(
    layers: Sequence[LayerCurve],
    sparsity: float | None = None,
    kind: str = "uniform",
    *,
    floor: float | None = None,
    max_error: float | None = None,
) -> dict[str, float]:
    """The sparsity of each layer, by name.

    Args:
        layers: at least one, of different names.
        sparsity: fraction of zeros over all layers, in [0, 1).
        kind: one of `ALLOCATIONS`.
        floor: the least density of a layer; by default a tenth of that of all layers together, and
            never less than one entry.
        max_error: instead of a sparsity, the most that ||S - A||_F / ||A||_F may be where the
            largest magnitudes are kept: of each layer by "uniform", and then every layer is as
            sparse as that allows; by "spectral" the root mean square over the layers, and then all
            together are. The bound holds, and is met to about 1e-3 of it.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.
    """
    check_allocation(kind, sparsity, floor, max_error)
    sizes = np.array([layer.size for layer in layers], np.int64)
    if sparsity is None or max_error is not None:
        share = 0.0 if floor is None else floor
        least = np.maximum(np.ceil(share * sizes).astype(np.int64), 1)
        kept = _within_error(layers, float(max_error or 0.0), least, together=kind == "spectral")
        return _sparsities(layers, sizes, kept)
    budget = spectral_kernels.entries_to_keep(int(sizes.sum()), sparsity)
    share = FLOOR_SHARE * (1.0 - sparsity) if floor is None else floor
    least = np.maximum(np.ceil(share * sizes).astype(np.int64), 1)
    if kind == "uniform":
        _check_uniform(sparsity, floor)
        return {layer.name: float(sparsity) for layer in layers}
    if int(least.sum()) > budget:
        raise ValueError(
            f"floor: layers would keep {int(least.sum())} entries at the least, and sparsity "
            f"{sparsity} leaves {budget} of {int(sizes.sum())}; expected a lower floor or sparsity"
        )
    if kind == "erk":
        weights = np.array([float(sum(layer.shape)) for layer in layers])
        return _sparsities(layers, sizes, _in_proportion(weights, least, sizes, budget))
    scales = [_inverse_energy(layer) if kind == "spectral" else 1.0 for layer in layers]
    table = _Table.of(layers, least, scales)
    return _sparsities(layers, sizes, least + table.largest(budget - int(least.sum())))


def none_empty(
    sparsity: float, m: int, n: int, group: str = "tensor", pattern: str | None = None
) -> float:
    """The sparsity of a layer (m, n), or the most that leaves it an entry where that leaves none.

    With group "row" it leaves every row one, and with a pattern of blocks it leaves a block.
    """
    parsed = None if pattern is None else parse_pattern(pattern)
    if isinstance(parsed, NM):
        return sparsity
    if isinstance(parsed, Blocks):
        m, n = m // parsed.rows, n // parsed.columns
    units = n if group == "row" else m * n
    return sparsity if spectral_kernels.entries_to_keep(units, sparsity) else (units - 1) / units


def mean_sparsity(weights: Iterable[tuple[float, int]]) -> float:
    """The fraction of zeros of all layers together, from that of each and its size."""
    pairs = list(weights)
    return math.fsum(share * size for share, size in pairs) / sum(size for _, size in pairs)


def _check_uniform(sparsity: float, floor: float | None) -> None:
    if floor is not None and floor > 1.0 - sparsity:
        raise ValueError(
            f"floor: expected at most the density {1.0 - sparsity:.6g} that sparsity {sparsity} "
            f"leaves every layer; got {floor}"
        )


def _sparsities(layers: Sequence[LayerCurve], sizes: Int64, kept: Int64) -> dict[str, float]:
    return {
        layer.name: (int(size) - int(count)) / int(size)
        for layer, size, count in zip(layers, sizes, kept, strict=True)
    }


def _inverse_energy(layer: LayerCurve) -> float:
    """1 / ||A||_F^2, and 0 for a layer of zeros; from the lower bound, so that shares are upper."""
    energy = math.fsum(layer.least)
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
            # The floor takes the largest entries.
            rest = np.minimum(np.maximum(np.cumsum(layer.counts) - floor, 0), layer.counts)
            owner.append(np.full(rest.size, i))
            counts.append(rest)
            gains.append(scale * layer.squares / np.maximum(layer.counts, 1))
            cost.append(scale * np.minimum(layer.most, rest * layer.largest))
            each.append(scale * layer.largest)
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
