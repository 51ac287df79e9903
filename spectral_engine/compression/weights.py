"""What sparse modules have in common: a packed weight as buffers, its state dict, its copies."""

from collections.abc import Mapping
from typing import Any

import torch
from spectral_kernels.product import Operator, Packed, pack, prepare, unpack
from torch import nn

from spectral_engine.checkpoints.sparse import checks, forms
from spectral_engine.compression import operators

#: What operators take of each form that is held.
_ARRAYS = {
    forms.BITMASK: (forms.VALUES, forms.BITMASK, forms.OFFSETS),
    forms.DELTAS: (forms.VALUES, forms.DELTAS, forms.SHAPE),
    forms.POSITIONS: (forms.VALUES, forms.POSITIONS, forms.PATTERN),
}


class SparseWeight(nn.Module):
    """A module that holds a weight without its zeros; the base of those here.

    Attributes:
        compressed, shape: buffers, the parts that all forms have.
        bitmask, row_offsets; or deltas; or positions, pattern: buffers, the other parts of the form
            that is held.
        form: "bitmask", "deltas" or "positions"; on a GPU always "bitmask".
        weight_shape: the shape of the dense weight.
        rows, columns: of the matrix that is packed, (weight_shape[0], -1).
        weight: the dense weight, made when asked for, and not kept.
    """

    compressed: torch.Tensor
    shape: torch.Tensor

    def __init__(self, parts: Mapping[str, torch.Tensor], weight_shape: tuple[int, ...]) -> None:
        """Hold the parts of one of the forms; `settle` makes those that products do not read."""
        super().__init__()
        self.prepared: operators.Prepared | None = None
        self.weight_shape = tuple(weight_shape)
        self.rows, self.columns = forms.matrix_shape(self.weight_shape)
        self._hold(parts)
        operators.hold(self)

    @property
    def arrays(self) -> operators.Arrays:
        """What operators take: the values, where they are, and one array more."""
        first, second, third = _ARRAYS[self.form]
        return getattr(self, first), getattr(self, second), getattr(self, third)

    @property
    def weight(self) -> torch.Tensor:
        """The dense weight, made anew at each access; changing it changes nothing here."""
        dense: torch.Tensor = operators.sparse_dense(*self.arrays, self.rows, self.columns)
        return dense.reshape(self.weight_shape)

    @property
    def sparsity(self) -> float:
        """The fraction of entries that are not stored."""
        return 1.0 - self.compressed.numel() / (self.rows * self.columns)

    def settle(self) -> None:
        """Hold a form that products read, in no more bytes than the one that was loaded.

        Raises:
            ValueError: parts that do not belong together.
        """
        device = self.compressed.device
        if self.form == forms.BITMASK or device.type == "meta":
            return
        on_cpu = device.type == "cpu"
        given = {
            name: part
            for name, part in self._buffers.items()
            if name in forms.EVERY_PART and part is not None
        }
        if on_cpu and forms.is_held(given):
            return
        made = _checked(given, on_cpu)
        self._hold({name: part.to(device) for name, part in made.items()})

    def _hold(self, parts: Mapping[str, torch.Tensor]) -> None:
        """Hold these parts and no others."""
        for name in forms.EVERY_PART:
            self._buffers.pop(name, None)
        for name, part in parts.items():
            self.register_buffer(name, part)
        self.form = forms.form_of(parts)

    def _loaded(self) -> None:
        """Called when `load_state_dict` has filled the parts."""

    def _prepared(self) -> Operator:
        """What multiplies by the weight, made if it has changed since."""
        return operators.prepared_by(self, _ARRAYS[self.form])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "prepared": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        operators.hold(self)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.prepared = None
        moved = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.settle()
        return moved

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Load any form, or the dense weight; the number of values may be another one."""
        name = prefix + "weight"
        given = {
            part: state_dict.pop(prefix + part)
            for part in forms.EVERY_PART
            if prefix + part in state_dict
        }
        dense = state_dict.pop(name, None)
        device = self.compressed.device
        try:
            parts = _parts(given, dense, self.weight_shape, device.type in ("cpu", "meta"))
        except (ValueError, TypeError) as error:
            error_msgs.append(f"{name}: {error}")
            parts = {}
        rooms = {}
        for part, given_part in parts.items():
            own = self._buffers.get(part)
            dtype = self.compressed.dtype if part == forms.VALUES else given_part.dtype
            fits = own is not None and own.shape == given_part.shape and own.dtype == dtype
            if own is None or not fits or own.is_meta:
                place = given_part.device if device.type == "meta" else device
                own = torch.empty_like(given_part, dtype=dtype, device=place)
            rooms[part], state_dict[prefix + part] = own, given_part
        if rooms:
            self._hold(rooms)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if rooms:
            self._loaded()
        if not parts and (given or dense is not None):
            absent = {prefix + part for part in forms.PARTS[self.form]}
            missing_keys[:] = [key for key in missing_keys if key not in absent]


def parts_of_dense(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """The parts of a weight of two dimensions or more, in the smallest of the forms that products
    read.

    Raises:
        ValueError: a weight without values.
    """
    if weight.is_meta:
        raise ValueError("layer: expected a weight with values; got one on the meta device")
    weight, shape = weight.detach().contiguous(), tuple(weight.shape)
    if weight.device.type == "cpu":
        plan = forms.plan(weight)
        if plan.form in (forms.DELTAS, forms.POSITIONS):
            made = forms.encode(weight, plan)
            if forms.is_held(made):
                return made
    packed = pack(weight.reshape(forms.matrix_shape(shape)))
    made = forms.parts_of(packed, shape, forms.plan_of(packed, shape))
    return {name: part.to(weight.device) for name, part in made.items()}


def _parts(
    given: Mapping[str, torch.Tensor], dense: Any, shape: tuple[int, ...], on_cpu: bool
) -> dict[str, torch.Tensor]:
    """The parts to hold of what a state dict holds; none if it holds nothing of them."""
    if dense is not None and not given:
        made = parts_of_dense(dense)
    elif given:
        form = next((one for one in forms.PARTS if one in given), None)
        if form is None or not set(forms.PARTS[form]) <= given.keys():
            raise ValueError(f"expected the parts of one form; got {sorted(given)}")
        made = _checked({part: given[part] for part in forms.PARTS[form]}, on_cpu)
    else:
        return {}
    found = tuple(made[forms.SHAPE].tolist())
    if found != shape:
        raise ValueError(f"expected shape {shape}; got {found}")
    return made


def _checked(parts: Mapping[str, torch.Tensor], on_cpu: bool) -> dict[str, torch.Tensor]:
    """Parts that products read, once they are known to belong together."""
    matrix, shape = forms.matrix_from(parts)
    if not isinstance(matrix, Packed):
        if on_cpu and forms.is_held(parts):
            prepare(matrix)  # which walks through them all
            return dict(parts)
        matrix = pack(unpack(matrix))
    checks.check(matrix)
    made = forms.parts_of(matrix, shape, forms.plan_of(matrix, shape))
    return {name: part.to(matrix.values.device) for name, part in made.items()}
