"""The argument `split`: weights that are several matrices, one above the other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from spectral_engine._util.globs import matches
from spectral_engine.distributed.shards import outline
from spectral_engine.layers.views import View, split_view


@dataclass
class Splits:
    """The argument `split`: which weights are several matrices, one above the other.

    Args:
        given: from a pattern over names to the names of equal parts, or from name to number of
            rows; None for none.

    Raises:
        TypeError: another form.
    """

    given: Any
    unmatched: list[str] = field(init=False)

    def __post_init__(self) -> None:
        given = {} if self.given is None else self.given
        if not isinstance(given, Mapping) or not all(
            isinstance(pattern, str) and _is_parts(parts) for pattern, parts in given.items()
        ):
            raise TypeError(
                "split: expected a dictionary from a pattern to the names of equal parts, or from "
                f"name to number of rows; got {self.given!r}"
            )
        self.given = given
        self.unmatched = [f"split {pattern!r}" for pattern in given]

    def apply(
        self, views: list[View], parameter: nn.Parameter, full: str, prefix: str
    ) -> list[View]:
        """The views, each split into its parts where a pattern matches.

        Args:
            views: of the parameter. parameter: whose rows are counted.
            full, prefix: the parameter's name and its module's.

        Raises:
            ValueError: parts that do not make up the rows, or a batch of matrices.
        """
        for pattern, parts in self.given.items():
            if not views or not matches(pattern, [full, prefix]):
                continue
            label = f"split {pattern!r}"
            self.unmatched = [other for other in self.unmatched if other != label]
            return [part for view in views for part in _parts(view, parts, parameter, full)]
        return views


def _is_parts(parts: Any) -> bool:
    if isinstance(parts, Mapping):
        names, sizes = list(parts), list(parts.values())
        sized = all(type(rows) is int and rows > 0 for rows in sizes)
    else:
        names, sized = parts, isinstance(parts, Sequence) and len(set(parts)) == len(parts)
    return sized and len(names) > 0 and all(isinstance(name, str) for name in names)


def _parts(view: View, parts: Any, parameter: nn.Parameter, full: str) -> list[View]:
    if is_lazy(parameter):
        return [view]  # refused by `require_ready`
    if view.batch:
        raise ValueError(f"split: expected one matrix; {full} is a batch of them")
    rows = view.of(outline(parameter)).shape[0]
    sizes = dict(parts) if isinstance(parts, Mapping) else dict.fromkeys(parts, rows // len(parts))
    if sum(sizes.values()) != rows:
        raise ValueError(
            f"split: expected parts that make up the {rows} rows of {full}; got {parts!r}"
        )
    return split_view(view, sizes)
