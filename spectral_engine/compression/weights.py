"""What sparse modules have in common: a packed weight as buffers, its state dict, its copies."""

from collections.abc import Mapping
from typing import Any

import torch
from spectral_kernels.product import Packed, pack
from torch import nn

from spectral_engine.checkpoints.sparse import checks, forms
from spectral_engine.compression import operators


class SparseWeight(nn.Module):
    """A module that holds a weight as values and bits; the base of those here.

    Attributes:
        compressed, bitmask, row_offsets, shape: buffers, the parts of the bitmask form.
        weight_shape: the shape of the dense weight.
        columns: of the matrix that is packed, (weight_shape[0], -1).
        weight: the dense weight, made when asked for, and not kept.
    """

    compressed: torch.Tensor
    bitmask: torch.Tensor
    row_offsets: torch.Tensor
    shape: torch.Tensor

    def __init__(self, parts: Mapping[str, torch.Tensor], weight_shape: tuple[int, ...]) -> None:
        """Hold the parts of one of the forms; `settle` makes others than the bitmask one."""
        super().__init__()
        self.prepared: operators.Prepared | None = None
        self.weight_shape = tuple(weight_shape)
        self.columns = forms.matrix_shape(self.weight_shape)[1]
        for name, part in parts.items():
            self.register_buffer(name, part)
        operators.hold(self)

    @property
    def weight(self) -> torch.Tensor:
        """The dense weight, made anew at each access; changing it changes nothing here."""
        arrays = (self.compressed, self.bitmask, self.row_offsets)
        dense: torch.Tensor = operators.sparse_dense(*arrays, self.columns)
        return dense.reshape(self.weight_shape)

    @property
    def sparsity(self) -> float:
        """The fraction of entries that are not stored."""
        m, n = forms.matrix_shape(self.weight_shape)
        return 1.0 - self.compressed.numel() / (m * n)

    def settle(self) -> None:
        """Hold the bitmask form, whatever form was loaded.

        Raises:
            ValueError: parts that do not belong together.
        """
        if forms.BITMASK in self._buffers:
            return
        given = {name: part for name, part in self._buffers.items() if name in forms.EVERY_PART}
        made = _checked({name: part for name, part in given.items() if part is not None})
        device = self.compressed.device
        for name in given:
            del self._buffers[name]
        for name, part in made.items():
            self.register_buffer(name, part.to(device))

    def packed(self) -> Packed:
        """The weight as the kernels take it."""
        return operators.packed_of(self.compressed, self.bitmask, self.row_offsets, self.columns)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "prepared": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        operators.hold(self)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.prepared = None
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

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
        try:
            parts = _parts(given, dense, self.weight_shape, name)
        except (ValueError, TypeError) as error:
            error_msgs.append(f"{name}: {error}")
            parts = {}
        self.settle()
        for part, given_part in parts.items():
            own = self.get_buffer(part)
            tensor = given_part.to(own.dtype if part == forms.VALUES else given_part.dtype)
            if own.shape != tensor.shape or own.dtype != tensor.dtype or own.is_meta:
                device = tensor.device if own.is_meta else own.device
                self._buffers[part] = torch.empty_like(tensor, device=device)
            state_dict[prefix + part] = tensor
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if not parts and (given or dense is not None):
            absent = {prefix + part for part in forms.PARTS[forms.BITMASK]}
            missing_keys[:] = [key for key in missing_keys if key not in absent]


def parts_of_dense(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """The bitmask parts of a weight of two dimensions or more."""
    if weight.is_meta:
        raise ValueError("layer: expected a weight with values; got one on the meta device")
    shape = tuple(weight.shape)
    packed = pack(weight.detach().contiguous().reshape(forms.matrix_shape(shape)))
    made = forms.parts_of(packed, shape, forms.plan_of(packed, shape))
    return {name: part.to(weight.device) for name, part in made.items()}


def _parts(
    given: Mapping[str, torch.Tensor], dense: Any, shape: tuple[int, ...], name: str
) -> dict[str, torch.Tensor]:
    """The bitmask parts of what a state dict holds; none if it holds nothing of them."""
    if dense is not None and not given:
        made = parts_of_dense(dense)
    elif given:
        form = next((one for one in forms.PARTS if one in given), None)
        if form is None or not set(forms.PARTS[form]) <= given.keys():
            raise ValueError(f"expected the parts of one form; got {sorted(given)}")
        made = _checked({part: given[part] for part in forms.PARTS[form]})
    else:
        return {}
    found = tuple(made[forms.SHAPE].tolist())
    if found != shape:
        raise ValueError(f"expected shape {shape}; got {found}")
    return made


def _checked(parts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The bitmask parts from those of any form, once they are known to belong together."""
    packed, shape = forms.packed_from(parts)
    checks.check(packed)
    made = forms.parts_of(packed, shape, forms.plan_of(packed, shape))
    return {name: part.to(packed.values.device) for name, part in made.items()}
