"""Two states of one network, compared weight by weight: how far pruning moved its spectrum."""

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch import nn

from spectral_engine._util.checks import boolean, file_path, integer
from spectral_engine._util.progress import Progress, check_progress, reporting
from spectral_engine._util.text import as_text, plain_text
from spectral_engine._util.threads import for_each
from spectral_engine.checkpoints.atomic import replacing_file
from spectral_engine.checkpoints.formats.base import brief
from spectral_engine.layers.find import Skipped
from spectral_engine.layers.selector import Selector
from spectral_engine.matrix.errors import batch_errors, errors
from spectral_engine.spectral.compute import COPIES
from spectral_engine.spectral.weights import Weight, require_found, weights_of

WIDTH = 110
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


@dataclass(frozen=True)
class Comparison:
    """What `compare` found; `print` shows it as a table.

    layers: a row for each weight, in the order of the dense network
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

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write JSON, whole or not at all.

        Args:
            path: the file.
            force: replace the file if it exists.

        Raises:
            FileExistsError: the file exists, and `force` is False.
        """
        with replacing_file(file_path("path", path), force=boolean("force", force)) as file:
            file.write((json.dumps(self.to_dict(), indent=1) + "\n").encode())

    def table(self) -> Table:
        """A row for each weight, for rich."""
        table = Table(
            title=f"{len(self.layers)} weights",
            caption="relative errors; angles between the leading subspaces in degrees",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        table.add_column("weight", overflow="fold")
        for name in (
            "shape", "sparsity", "spectral", "Frobenius", "values", "worst", "left", "right",
        ):  # fmt: skip
            table.add_column(name, justify="right", no_wrap=True)
        for row in self.layers:
            table.add_row(
                plain_text(row.name),
                "x".join(map(str, row.shape)),
                *(
                    f"{value:.4f}"
                    for value in (
                        row.sparsity,
                        row.spectral,
                        row.frobenius,
                        row.mean_singular_value,
                        row.worst_singular_value,
                    )
                ),
                f"{math.degrees(row.left_angle):.1f}",
                f"{math.degrees(row.right_angle):.1f}",
            )
        return table

    def __str__(self) -> str:
        left = (plain_text(f"not compared: {one.name}, {one.reason}") for one in self.skipped)
        return as_text(WIDTH, self.table(), *left)


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
        A row for each weight of the dense network.

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
        found.layers.extend(rows[weight.name] for weight in weights)
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
    )


def _refuse(argument: str, where: str, expected: str, verb: str, names: list[str]) -> None:
    if names:
        shown = ", ".join(map(brief, names[:_SHOWN]))
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise ValueError(f"{argument}: expected {expected} in {where}; {verb} {shown}{more}")
