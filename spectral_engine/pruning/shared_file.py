"""The tensors of a file pruned by several processes, and written by the first of them."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist

from spectral_engine.distributed.owners import Made, by_owners, tell_all
from spectral_engine.pruning.report import LayerReport

#: Tensors, for each process, that are shared out among each other: as many may wait to be written.
_WINDOW = 2

#: From a tensor's name to the tensor, pruned, and a row for each of its layers.
PruneTensor = Callable[[str], tuple[torch.Tensor, list[LayerReport]]]


class SharedTensors:
    """Tensors that each are pruned by one process of a group, in about the order of the file.

    Args:
        costs: by name, about how long each takes. prune: reads and prunes one, on its owner.
        group: of processes, which all read the same file.
    """

    def __init__(self, costs: Mapping[str, float], prune: PruneTensor, group: Any) -> None:
        self._names, self._group, self._knows = list(costs), group, False
        self._waiting: dict[str, tuple[torch.Tensor, list[LayerReport]]] = {}

        def work(index: int, _: None) -> Made:
            tensor, rows = prune(self._names[index])
            return Made([tensor], rows)

        self._made = by_owners(
            list(costs.values()), lambda *_: None, work, group, torch.device("cpu"),
            window=_WINDOW * dist.get_world_size(group), writer=0,
        )  # fmt: skip

    def written(
        self,
        write: Callable[[Callable[[str, torch.Tensor], torch.Tensor]], None],
        done: Callable[[str, list[LayerReport]], None],
    ) -> list[LayerReport]:
        """Prune all tensors, and write them on the first process.

        Args:
            write: called there with a function from a name, and the tensor of the file, to the
                tensor that is to be written.
            done: called there with a tensor's name and its rows, before it is written.

        Returns:
            All rows, on every process.

        Raises:
            Exception: that of any process, on all of them.
        """
        rows: list[LayerReport] = []
        if dist.get_rank(self._group):
            for _, found in self._steps():
                rows += found
        else:

            def take(name: str, _: torch.Tensor) -> torch.Tensor:
                while name not in self._waiting:
                    found, made = next(self._steps())
                    rows.extend(made)
                    done(found, made)
                return self._waiting.pop(name)[0]

            try:
                write(take)
                for _, found in self._steps():
                    rows += found
            except BaseException as error:
                if not self._knows:  # else the others have the same error
                    tell_all(error, self._group)
                raise
        tell_all(None, self._group)  # the others wait until it is written
        return rows

    def _steps(self) -> Iterator[tuple[str, list[LayerReport]]]:
        while True:
            try:
                index, made = next(self._made)
            except StopIteration:
                return
            except Exception:
                self._knows = True
                raise
            if made.tensors:
                self._waiting[self._names[index]] = made.tensors[0], made.plain
            yield self._names[index], made.plain
