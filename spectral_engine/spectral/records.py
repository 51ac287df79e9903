"""What a tracker has recorded: one buffer that grows, a row for each record.

A long training records thousands of small spectra. As arrays of their own they would lie between
the large temporaries that they were computed from, and keep the memory around them from being given
back.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray

from spectral_engine._util.checks import shown
from spectral_engine.checkpoints import CheckpointError, open_checkpoint
from spectral_engine.checkpoints.atomic import replacing_file
from spectral_engine.spectral.power_law import Values

Array = TypeVar("Array", Values, NDArray[np.int64])

#: What is recorded of a weight, in the order of its columns.
QUANTITIES = ("singular_values", "frobenius", "effective_rank")
#: Rows that there is room for at first; twice as many each time that they are full.
_FIRST_ROWS = 16


class Records:
    """Spectra of some weights at some steps.

    Args:
        sizes: by the name of each weight, how many of its leading singular values are recorded.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._columns: dict[str, dict[str, slice | int]] = {}
        width = 0
        for name, size in sizes.items():
            columns = (slice(width, width + size), width + size, width + size + 1)
            self._columns[name] = dict(zip(QUANTITIES, columns, strict=True))
            width += size + 2
        self._length = 0
        self._steps = np.zeros(_FIRST_ROWS, dtype=np.int64)
        self._rows = np.zeros((_FIRST_ROWS, width))

    def __len__(self) -> int:
        return self._length

    @property
    def names(self) -> list[str]:
        """The names of the weights."""
        return list(self._columns)

    @property
    def steps(self) -> NDArray[np.int64]:
        """The steps at which there are records, (T,)."""
        return self._steps[: self._length].copy()

    def read(self, name: str, quantity: str) -> Values:
        """One of `QUANTITIES` of a weight at each step, (T, k) or (T,).

        Raises:
            ValueError: no weight of that name is recorded.
        """
        if not isinstance(name, str) or name not in self._columns:
            raise ValueError(f"name: expected one of {', '.join(self._columns)}; got {shown(name)}")
        found: Values = self._rows[: self._length, self._columns[name][quantity]]
        return found.copy()

    def new_row(self) -> Values:
        """Room for one record, NaN throughout, for `fill` and then `append`."""
        return np.full(self._rows.shape[1], np.nan)

    def fill(self, row: Values, name: str, *quantities: Values | float) -> None:
        """Write the quantities of one weight, in their order, into a new row."""
        for columns, value in zip(self._columns[name].values(), quantities, strict=True):
            row[columns] = value

    def append(self, step: int, row: Values) -> None:
        """Take a row on as the record of a step."""
        if self._length == len(self._steps):
            self._steps = _with_rows(self._steps, 2 * self._length)
            self._rows = _with_rows(self._rows, 2 * self._length)
        self._steps[self._length], self._rows[self._length] = step, row
        self._length += 1

    # As plain values

    def to_state(self) -> dict[str, Any]:
        """Steps, and the quantities of each weight, as tensors in memory of their own."""
        layers = {
            name: {quantity: torch.from_numpy(self.read(name, quantity)) for quantity in QUANTITIES}
            for name in self.names
        }
        return {"steps": torch.from_numpy(self.steps), "layers": layers}

    @classmethod
    def of_state(cls, sizes: Mapping[str, int], state: Mapping[str, Any]) -> "Records":
        """The records of `to_state`.

        Args:
            sizes: as of the class.
            state: what `to_state` gave, with the same weights and sizes.

        Raises:
            ValueError: something is missing, of another kind or of another shape.
        """
        steps = _tensor(state, "steps", (None,), "steps", floating=False)
        if bool((steps < 0).any()):
            raise ValueError(f"state: expected steps of at least 0; got {int(steps.min())}")
        layers = _mapping(state, "layers", "weights by name")
        records = cls(sizes)
        length = len(steps)
        records._rows = _with_rows(records._rows, max(length, _FIRST_ROWS))
        records._steps = _with_rows(steps.long().numpy(), max(length, _FIRST_ROWS))
        records._length = length
        for name, size in sizes.items():
            held = _mapping(layers, name, f"singular values of weight {name}")
            shapes = ((length, size), (length,), (length,))
            for quantity, shape in zip(QUANTITIES, shapes, strict=True):
                what = f"{quantity.replace('_', ' ')} of weight {name}"
                tensor = _tensor(held, quantity, shape, what, floating=True)
                records._rows[:length, records._columns[name][quantity]] = tensor.double().numpy()
        for name in layers:
            if name not in sizes:
                raise ValueError(f"state: expected no weight {name}; got its singular values")
        return records


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a tracker's state to an .npz file, whole or not at all, over an older one.

    Arrays are stored without pickle; what is neither `steps` nor `layers` is JSON in "header".

    Raises:
        ValueError: the name has another ending.
    """
    _require_npz(path)
    layers: Mapping[str, Mapping[str, torch.Tensor]] = state["layers"]
    arrays = {"steps": state["steps"].numpy()}
    for index, layer in enumerate(layers.values()):
        arrays |= {f"{index}.{quantity}": array.numpy() for quantity, array in layer.items()}
    plain = {key: value for key, value in state.items() if key not in ("steps", "layers")}
    header = json.dumps({**plain, "names": list(layers)}).encode()
    arrays["header"] = np.frombuffer(header, dtype=np.uint8)
    with replacing_file(path, force=True) as file:
        np.savez(file, **arrays)


def read_state(path: Path) -> dict[str, Any]:
    """The state in a file that `write_state` wrote.

    Raises:
        ValueError, OSError: name the file and what was wrong.
    """
    _require_npz(path)
    with open_checkpoint(path) as file:
        try:
            state: dict[str, Any] = json.loads(file.read("header").numpy().tobytes())
            state["steps"] = file.read("steps")
            state["layers"] = {
                name: {quantity: file.read(f"{index}.{quantity}") for quantity in QUANTITIES}
                for index, name in enumerate(state.pop("names"))
            }
        except CheckpointError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CheckpointError(
                path, "a file that SpectrumTracker.save wrote", str(error)
            ) from error
    return state


def _require_npz(path: Path) -> None:
    if path.suffix != ".npz":
        raise ValueError(f"path: expected a name that ends in .npz; got {path.name!r}")


def _with_rows(array: Array, rows: int) -> Array:
    """A copy of an array with more rows, or as many."""
    grown = np.zeros((rows, *array.shape[1:]), dtype=array.dtype)
    grown[: len(array)] = array
    return cast(Array, grown)


def _mapping(held: Mapping[str, Any], key: str, what: str) -> Mapping[str, Any]:
    """A mapping of a state; ValueError where there is none."""
    found = held.get(key)
    if found is None or not isinstance(found, Mapping):
        raise ValueError(f"state: expected {what}; got {type(found).__name__}")
    return found


def _tensor(
    held: Mapping[str, Any], key: str, shape: tuple[int | None, ...], what: str, *, floating: bool
) -> torch.Tensor:
    """A tensor of a state, on the host; ValueError where there is none of that kind and shape.

    shape: None where any size is right
    """
    value = held.get(key)
    if (
        not isinstance(value, torch.Tensor)
        or value.is_meta
        or value.layout != torch.strided
        or value.dtype == torch.bool
        or value.is_complex()
        or value.is_floating_point() is not floating
    ):
        kind = "floating-point numbers" if floating else "integers"
        got = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
        raise ValueError(f"state: expected {what} as a tensor of {kind}; got {got}")
    found = tuple(value.shape)
    if len(found) != len(shape) or any(
        size not in (None, own) for size, own in zip(shape, found, strict=True)
    ):
        expected = "one dimension" if None in shape else f"shape {shape}"
        raise ValueError(f"state: expected {what} of {expected}; got {found}")
    return value.detach().cpu()
