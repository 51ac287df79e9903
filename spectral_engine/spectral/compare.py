"""Two states of one network, compared weight by weight: how far pruning moved its spectrum."""

import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from spectral_engine._util.checks import integer
from spectral_engine._util.progress import Progress, check_progress, reporting
from spectral_engine._util.text import natural
from spectral_engine._util.threads import for_each
from spectral_engine.checkpoints.formats.base import brief
from spectral_engine.layers.find import Skipped
from spectral_engine.layers.selector import Selector
from spectral_engine.matrix.errors import batch_errors, errors, leading
from spectral_engine.pages.report import Report
from spectral_engine.pages.sheet import (
    Column,
    Listed,
    Row,
    Sheet,
    by_reason,
    counted,
    in_order,
    numeral,
    sizes,
)
from spectral_engine.spectral.compute import COPIES
from spectral_engine.spectral.weights import Weight, require_found, weights_of

#: Names in a message, before it says how many more there are.
_SHOWN = 4


@dataclass(frozen=True)
class LayerErrors:
    """One weight of the pruned network against the dense one, a row of `Comparison`.

    name, shape: of the weight, as in a report of `prune`
    sparsity: the share of zeros in the pruned one
    rank: leading values that were compared; of each block, where a weight is several blocks
    spectral, frobenius: relative errors ||A - S|| / ||A||, infinite where A = 0 and S is not
    mean_singular_value, worst_singular_value: relative errors of the leading singular values
    left_angle, right_angle: the largest principal angle between the leading subspaces, radians
    before, after: the leading singular values of the two, descending; of all blocks together

    >>> import copy, torch, spectral_engine as se
    >>> dense = torch.nn.Linear(2, 2)
    >>> _ = dense.weight.data.copy_(torch.diag(torch.tensor([4.0, 3.0])))
    >>> pruned = copy.deepcopy(dense)
    >>> pruned.weight.data[1, 1] = 0.0
    >>> row = se.compare(dense, pruned).layers[0]
    >>> row.sparsity, round(row.spectral, 3), round(row.frobenius, 3)
    (0.75, 0.75, 0.6)
    """

    name: str
    shape: tuple[int, ...]
    sparsity: float
    rank: int
    spectral: float
    frobenius: float
    mean_singular_value: float
    worst_singular_value: float
    left_angle: float
    right_angle: float
    before: tuple[float, ...] = field(default=(), repr=False)
    after: tuple[float, ...] = field(default=(), repr=False)


@dataclass(frozen=True, repr=False)
class Comparison(Report):
    """What `compare` found; `print` shows it as a table, `to_html` writes a page.

    layers: a row for each weight, in the order of the dense network; of files in natural order
    skipped: what was not compared, with the reason

    >>> import torch, spectral_engine as se
    >>> model = torch.nn.Linear(3, 2)
    >>> found = se.compare(model, model)
    >>> [(row.name, row.spectral) for row in found.layers], found.skipped
    ([('weight', 0.0)], [])
    """

    layers: list[LayerErrors] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; an infinite error is None."""
        rows = [
            {
                key: None if isinstance(value, float) and not math.isfinite(value) else value
                for key, value in asdict(layer).items()
            }
            for layer in self.layers
        ]
        return {"layers": rows, "skipped": [asdict(skipped) for skipped in self.skipped]}

    def summary(self) -> str:
        """How many weights, and the worst of their spectral errors."""
        worst = max((row.spectral for row in self.layers), default=0.0)
        return f"{counted(len(self.layers), 'weight')}, spectral errors up to {worst:.4f}"

    def sheet(self) -> Sheet:
        """A row for each weight."""
        endless = [row.name for row in self.layers if not math.isfinite(row.spectral)]
        changed = sum(row.spectral > 0.0 for row in self.layers)
        errors = sorted(row.spectral for row in self.layers)
        facts = [("weights", f"{len(self.layers):,}"), ("changed", f"{changed:,}")]
        if errors:
            facts += [
                ("spectral error, median", f"{errors[len(errors) // 2]:.3f}"),
                ("spectral error, worst", f"{errors[-1]:.3f}"),
            ]
        return Sheet(
            title=f"{counted(len(self.layers), 'weight')} compared",
            facts=[*facts, ("not compared", f"{len(self.skipped):,}")],
            warnings=[Listed("not zero where the dense one is", "", in_order(endless))]
            if endless
            else [],
            listed=by_reason("not compared", ((one.name, one.reason) for one in self.skipped)),
            columns=_COLUMNS,
            rows=[
                Row(
                    row.name,
                    [
                        sizes(row.shape), numeral(row.sparsity), numeral(row.spectral),
                        numeral(row.frobenius), numeral(row.mean_singular_value),
                        numeral(row.worst_singular_value),
                        numeral(math.degrees(row.left_angle), ".1f"),
                        numeral(math.degrees(row.right_angle), ".1f"),
                    ],
                    row.before,
                    row.after,
                )
                for row in self.layers
            ],
            caption="relative errors; angles between the leading subspaces in degrees",
            curves=("dense", "pruned"),
        )  # fmt: skip


_COLUMNS = [
    Column("shape"),
    Column("sparsity", "the share of zeros in the pruned one", bar=True),
    Column("spectral", "||A - S||_2 / ||A||_2", bar=True),
    Column("Frobenius", "||A - S||_F / ||A||_F", bar=True),
    Column("values", "mean relative change of the leading singular values", bar=True),
    Column("worst", "largest relative change of a leading singular value", bar=True, extra=True),
    Column("left", "largest angle between the leading left subspaces, degrees"),
    Column("right", "largest angle between the leading right subspaces, degrees"),
]


def compare(
    dense: nn.Module | str | os.PathLike[str],
    pruned: nn.Module | str | os.PathLike[str],
    rank: int = 64,
    *,
    targets: str | Iterable[str] | None = None,
    ignore: str | Iterable[str] | None = None,
    split: Any = None,
    max_bytes: int = 1 << 28,
    progress: Progress[LayerErrors] = True,
) -> Comparison:
    """The errors of each weight of a pruned network, found by `errors` without a full SVD.

    Args:
        dense, pruned: two models, the weights of which are seen and named as in a report of
            `prune`, or two weight files or folders of any format; with the same weights.
        rank: leading values and vectors that are compared, at most min(m, n) of each.
        targets, ignore, split: as in `spectra`.
        max_bytes: working memory; where one pair of tensors takes more, one pair is in memory at a
            time.
        progress: True, a bar on stderr where that is a terminal; False, none; or a function that is
            called with each `LayerErrors` as it is done, in no order.

    Returns:
        A row for each weight of the dense network; of files in natural order of the names.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came. A weight that
            only one of the two has, or that differs in shape, is named before anything is computed;
            NaN and infinity are named when their weight is compared.
        OSError: a file cannot be read.

    >>> import copy, torch, spectral_engine as se
    >>> dense = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.Linear(6, 4))
    >>> pruned = copy.deepcopy(dense)
    >>> _ = se.prune(pruned, "magnitude", 0.5)
    >>> [(row.name, row.sparsity) for row in se.compare(dense, pruned).layers]
    [('0.weight', 0.5), ('1.weight', 0.5)]
    """
    rank = integer("rank", rank, least=1)
    max_bytes = integer("max_bytes", max_bytes, least=1)
    check_progress(progress)
    if isinstance(dense, nn.Module) is not isinstance(pruned, nn.Module):
        raise TypeError(
            "pruned: expected a model if dense is one, and a path if it is a path; got "
            f"{type(dense).__name__} and {type(pruned).__name__}"
        )
    selector = Selector.of(targets, ignore)
    found = Comparison()
    with (
        weights_of(dense, selector, split, "dense") as (weights, skipped),
        weights_of(pruned, Selector.of(targets, ignore), split, "pruned") as (others, unlike),
    ):
        found.skipped.extend(skipped)
        require_found(weights, selector)
        names = [name for weight in weights for name in (weight.name, *weight.shared_with)]
        seen = {*names, *(row.name for row in skipped)}
        pairs = {name: other for other in others for name in (other.name, *other.shared_with)}
        where = type(pruned).__name__ if isinstance(pruned, nn.Module) else str(pruned)
        for row in unlike:
            if row.name in names:
                raise TypeError(
                    f"pruned: expected floating-point numbers in tensor {brief(row.name)} of "
                    f"{where}; got {row.reason}"
                )
        _refuse("pruned", where, "the weights of the dense one", "it lacks",
                [name for name in names if name not in pairs])  # fmt: skip
        _refuse("pruned", where, "no other weights than the dense one", "it has",
                [name for name in pairs if name not in seen])  # fmt: skip
        for weight in weights:
            other = pairs[weight.name]
            if (other.shape, other.blocks) != (weight.shape, weight.blocks):
                raise ValueError(
                    f"pruned: expected tensor {brief(weight.name)} of {where} to have the shape"
                    f" of the dense one, {weight.shape}; got {other.shape}"
                )
        rows: dict[str, LayerErrors] = {}
        with reporting(progress, "comparing", len(weights)) as report:

            def measure(weight: Weight) -> None:
                try:
                    row = _measure(weight, pairs[weight.name], rank)
                except (TypeError, ValueError) as error:
                    raise type(error)(f"tensor {brief(weight.name)}: {error}") from error
                rows[weight.name] = row
                report(row)

            if any(one.sharded is not None for one in (*weights, *others)):
                for weight in weights:  # gathered by all processes, in the same order
                    measure(weight)
            else:
                for_each(measure, weights, lambda weight: COPIES * 8 * weight.size, max_bytes)
        if not isinstance(dense, nn.Module):
            names.sort(key=natural)  # a file has 10 before 2
        found.layers.extend(rows[name] for name in names if name in rows)
    return found


def _measure(weight: Weight, other: Weight, rank: int) -> LayerErrors:
    original, sparse = weight.load(), other.load()
    rank = min(rank, *weight.matrix)
    sparsity = float((sparse == 0).double().mean())
    if torch.equal(original, sparse):
        return LayerErrors(weight.name, weight.shape, sparsity, rank, *(0.0,) * 6)
    if weight.blocks > 1:
        result = batch_errors(original, sparse, rank)
    else:
        result = errors(original[0], sparse[0], rank, method="matrix-free")
    return LayerErrors(
        name=weight.name,
        shape=weight.shape,
        sparsity=sparsity,
        rank=rank,
        spectral=result.spectral,
        frobenius=result.frobenius,
        mean_singular_value=result.mean_singular_value,
        worst_singular_value=float(result.singular_values.max()),
        left_angle=float(result.left_angles.max()),
        right_angle=float(result.right_angles.max()),
        before=leading(result.original),
        after=leading(result.sparse),
    )


def _refuse(argument: str, where: str, expected: str, verb: str, names: list[str]) -> None:
    if names:
        shown = ", ".join(map(brief, names[:_SHOWN]))
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise ValueError(f"{argument}: expected {expected} in {where}; {verb} {shown}{more}")
