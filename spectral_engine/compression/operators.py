"""Products with packed weights as registered operators: torch.compile and torch.export keep them.

`spectral_engine::sparse_linear`      y = x S^T; its gradient with respect to x is the next one
`spectral_engine::sparse_linear_back` g S, by the rows of S made dense for a moment
`spectral_engine::sparse_rows`        rows of S, made dense
`spectral_engine::sparse_dense`       all of S, made dense

An operator gets the arrays of S, and makes what multiplies by them once: what is made is held by
the module that holds the arrays, or, in an exported program, where there is no module, by a list of
bounded length. It is made anew when an array moves or changes.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Protocol
from weakref import WeakSet, WeakValueDictionary

import torch
from spectral_kernels.product import Operator, Packed, prepare, unpack

#: How many products are kept for arrays that no module holds, as in an exported program.
KEPT = 1024


class Holder(Protocol):
    """A module that holds packed arrays."""

    prepared: "Prepared | None"
    compressed: torch.Tensor
    bitmask: torch.Tensor
    row_offsets: torch.Tensor

    def __hash__(self) -> int: ...


Key = tuple[Any, ...]
Arrays = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Prepared:
    """What multiplies by packed arrays, and which arrays these were."""

    __slots__ = ("__weakref__", "_arrays", "_stamps", "key", "operator")

    def __init__(self, key: Key, operator: Operator, arrays: Arrays) -> None:
        self.key, self.operator, self._arrays = key, operator, arrays
        self._stamps: tuple[int, ...] | None = None
        # Inference tensors do not count their changes: `unchanged` has nothing to compare.
        if not any(one.is_inference() for one in arrays):
            self._stamps = tuple(n for one in arrays for n in (one.data_ptr(), one._version))

    def unchanged(self, buffers: Mapping[str, torch.Tensor | None]) -> bool:
        """Whether a module's buffers are these very arrays, unchanged.

        False where that is not known. It is asked before every product, so it is written out.
        """
        a, b, c = self._arrays
        return (
            self._stamps is not None
            and buffers["compressed"] is a
            and buffers["bitmask"] is b
            and buffers["row_offsets"] is c
            and self._stamps
            == (
                a.data_ptr(), a._version, b.data_ptr(), b._version, c.data_ptr(), c._version,
            )
        )  # fmt: skip


_HOLDERS: WeakSet[Holder] = WeakSet()
#: What modules have prepared, by the arrays. An operator holds its arrays, so that as long as it is
#: here no other array has their addresses.
_FOUND: WeakValueDictionary[Key, Prepared] = WeakValueDictionary()
_KEPT: OrderedDict[Key, Prepared] = OrderedDict()
_LOCK = threading.RLock()


def hold(module: Holder) -> None:
    """Let operators find what a module has prepared by its arrays."""
    with _LOCK:
        _HOLDERS.add(module)


def key_of(values: torch.Tensor, bitmask: torch.Tensor, row_offsets: torch.Tensor) -> Key:
    """Equal for the same memory, unchanged."""
    return tuple(
        (one.data_ptr(), -1 if one.is_inference() else one._version, one.dtype, tuple(one.shape))
        for one in (values, bitmask, row_offsets)
    )


def packed_of(
    values: torch.Tensor, bitmask: torch.Tensor, row_offsets: torch.Tensor, columns: int
) -> Packed:
    """The arrays as the kernels take them."""
    return Packed(
        values, bitmask, row_offsets.to(torch.int64), (int(bitmask.shape[0]), int(columns))
    )


def prepared_by(module: Holder, columns: int) -> Operator:
    """What multiplies by a module's arrays, made if they have changed since."""
    arrays = (module.compressed, module.bitmask, module.row_offsets)
    key = key_of(*arrays)
    held = module.prepared
    if held is None or held.key != key:
        held = Prepared(key, prepare(packed_of(*arrays, columns)), arrays)
        module.prepared = held
        with _LOCK:
            _FOUND[key] = held
    return held.operator


def _operator(
    values: torch.Tensor, bitmask: torch.Tensor, row_offsets: torch.Tensor, columns: int
) -> Operator:
    key = key_of(values, bitmask, row_offsets)
    with _LOCK:
        held = _FOUND.get(key)
        if held is not None:
            return held.operator
        for module in _HOLDERS:  # only where nothing was found: there may be thousands
            if key_of(module.compressed, module.bitmask, module.row_offsets) == key:
                return prepared_by(module, columns)
        kept = _KEPT.get(key)
        if kept is None:
            arrays = (values, bitmask, row_offsets)
            kept = Prepared(key, prepare(packed_of(*arrays, columns)), arrays)
            _KEPT[key] = kept
            while len(_KEPT) > KEPT:
                _KEPT.popitem(last=False)
        _KEPT.move_to_end(key)
        return kept.operator


@torch.library.custom_op("spectral_engine::sparse_linear", mutates_args=())
def sparse_linear(
    x: torch.Tensor,
    values: torch.Tensor,
    bitmask: torch.Tensor,
    row_offsets: torch.Tensor,
    columns: int,
) -> torch.Tensor:
    """y = x S^T, (..., m) in x's dtype, of x (..., n) and S (m, n)."""
    out: torch.Tensor = _operator(values, bitmask, row_offsets, columns)(x)
    return out


@sparse_linear.register_fake
def _(
    x: torch.Tensor,
    values: torch.Tensor,
    bitmask: torch.Tensor,
    row_offsets: torch.Tensor,
    columns: int,
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], bitmask.shape[0]))


@torch.library.custom_op("spectral_engine::sparse_linear_back", mutates_args=())
def sparse_linear_back(
    g: torch.Tensor,
    values: torch.Tensor,
    bitmask: torch.Tensor,
    row_offsets: torch.Tensor,
    columns: int,
) -> torch.Tensor:
    """g S, (..., n) in g's dtype, of g (..., m) and S (m, n)."""
    dense = unpack(packed_of(values, bitmask, row_offsets, columns))
    return torch.matmul(g, dense.to(g.dtype))


@sparse_linear_back.register_fake
def _(
    g: torch.Tensor,
    values: torch.Tensor,
    bitmask: torch.Tensor,
    row_offsets: torch.Tensor,
    columns: int,
) -> torch.Tensor:
    return g.new_empty((*g.shape[:-1], columns))


@torch.library.custom_op("spectral_engine::sparse_rows", mutates_args=())
def sparse_rows(
    indices: torch.Tensor,
    values: torch.Tensor,
    bitmask: torch.Tensor,
    row_offsets: torch.Tensor,
    columns: int,
) -> torch.Tensor:
    """Rows of S (m, n), made dense: (..., n) of indices (...)."""
    wanted, where = torch.unique(indices, return_inverse=True)
    if wanted.numel() == 0:
        return values.new_empty((*indices.shape, columns))
    m = int(bitmask.shape[0])
    if int(wanted[0]) < 0 or int(wanted[-1]) >= m:
        raise IndexError(f"indices: expected 0 to {m - 1}; got {int(wanted[0])} to {wanted[-1]}")
    starts = row_offsets.to(torch.int64)
    ends = torch.cat([starts[1:], starts.new_tensor([values.numel()])])
    starts, counts = starts[wanted], (ends - starts)[wanted]
    offsets = counts.cumsum(0) - counts
    total = int(counts.sum())
    places = torch.arange(total, device=values.device)
    places += torch.repeat_interleave(starts - offsets, counts, output_size=total)
    part = Packed(values[places], bitmask[wanted], offsets, (wanted.numel(), columns))
    rows: torch.Tensor = unpack(part)
    return rows[where]


@sparse_rows.register_fake
def _(
    indices: torch.Tensor,
    values: torch.Tensor,
    bitmask: torch.Tensor,
    row_offsets: torch.Tensor,
    columns: int,
) -> torch.Tensor:
    return values.new_empty((*indices.shape, columns))


@torch.library.custom_op("spectral_engine::sparse_dense", mutates_args=())
def sparse_dense(
    values: torch.Tensor, bitmask: torch.Tensor, row_offsets: torch.Tensor, columns: int
) -> torch.Tensor:
    """S (m, n), made dense."""
    dense: torch.Tensor = unpack(packed_of(values, bitmask, row_offsets, columns))
    return dense


@sparse_dense.register_fake
def _(
    values: torch.Tensor, bitmask: torch.Tensor, row_offsets: torch.Tensor, columns: int
) -> torch.Tensor:
    return values.new_empty((bitmask.shape[0], columns))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    _, values, bitmask, row_offsets, ctx.columns = inputs
    ctx.save_for_backward(values, bitmask, row_offsets)


def _back(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:
    return sparse_linear_back(g, *ctx.saved_tensors, ctx.columns), None, None, None, None


def _back_twice(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:
    return sparse_linear(g, *ctx.saved_tensors, ctx.columns), None, None, None, None


sparse_linear.register_autograd(_back, setup_context=_keep)
sparse_linear_back.register_autograd(_back_twice, setup_context=_keep)
