"""Products with packed weights as registered operators: torch.compile and torch.export keep them.

`spectral_engine::sparse_linear`      y = x S^T; its gradient with respect to x is the next one
`spectral_engine::sparse_linear_back` g S, by the rows of S made dense for a moment
`spectral_engine::sparse_rows`        rows of S, made dense
`spectral_engine::sparse_dense`       all of S, made dense

The arrays of S are three: its values; its bits (m, ceil(n / 8)) and the offsets of its rows, or its
deltas (bytes,) and its shape, or its positions and their pattern (docs/format.md).

An operator gets them, and makes what multiplies by them once: what is made is held by
the module that holds the arrays, or, in an exported program, where there is no module, by a list of
bounded length. It is made anew when an array moves or changes.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Protocol
from weakref import WeakSet, WeakValueDictionary

import torch
from spectral_kernels.product import Deltas, Operator, Packed, Positions, prepare, unpack

#: How many products are kept for arrays that no module holds, as in an exported program.
KEPT = 1024


class Holder(Protocol):
    """A module that holds packed arrays."""

    prepared: "Prepared | None"
    rows: int
    columns: int

    @property
    def arrays(self) -> "Arrays":
        """The three arrays that an operator takes."""

    def __hash__(self) -> int: ...


Key = tuple[Any, ...]
Arrays = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Prepared:
    """What multiplies by packed arrays, and which arrays these were."""

    __slots__ = ("__weakref__", "_arrays", "_names", "_stamps", "key", "operator")

    def __init__(
        self, key: Key, operator: Operator, arrays: Arrays, names: tuple[str, ...] = ()
    ) -> None:
        """`names`: what the module calls its arrays, for `unchanged`."""
        self.key, self.operator, self._arrays, self._names = key, operator, arrays, names
        self._stamps: tuple[int, ...] | None = None
        # Inference tensors do not count their changes: `unchanged` has nothing to compare.
        if not any(one.is_inference() for one in arrays):
            self._stamps = tuple(n for one in arrays for n in (one.data_ptr(), one._version))

    def unchanged(self, buffers: Mapping[str, torch.Tensor | None]) -> bool:
        """Whether a module's buffers are these very arrays, unchanged.

        False where that is not known. It is asked before every product, so it is written out.
        """
        a, b, c = self._arrays
        first, second, third = self._names
        return (
            self._stamps is not None
            and buffers.get(first) is a
            and buffers.get(second) is b
            and buffers.get(third) is c
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


def key_of(arrays: Arrays) -> Key:
    """Equal for the same memory, unchanged."""
    return tuple(
        (one.data_ptr(), -1 if one.is_inference() else one._version, one.dtype, tuple(one.shape))
        for one in arrays
    )


def matrix_of(arrays: Arrays, rows: int, columns: int) -> Packed | Deltas | Positions:
    """The arrays as the kernels take them. Positions are held only where a row of them has fewer
    bytes than a row of bits.
    """
    values, places, last = arrays
    if places.ndim == 1:
        return Deltas(values, places, (rows, columns))
    if places.shape[1] < -(-columns // 8):
        N, M = last.tolist()
        return Positions(values, places, (N, M), (rows, columns))
    return Packed(values, places, last, (rows, columns))


def prepared_by(module: Holder, names: tuple[str, ...] = ()) -> Operator:
    """What multiplies by a module's arrays, made if they have changed since; `names`: theirs."""
    arrays = module.arrays
    key = key_of(arrays)
    held = module.prepared
    if held is None or held.key != key:
        operator = prepare(matrix_of(arrays, module.rows, module.columns))
        held = Prepared(key, operator, arrays, names)
        module.prepared = held
        with _LOCK:
            _FOUND[key] = held
    return held.operator


def _operator(arrays: Arrays, rows: int, columns: int) -> Operator:
    key = key_of(arrays)
    with _LOCK:
        held = _FOUND.get(key)
        if held is not None:
            return held.operator
        for module in _HOLDERS:  # only where nothing was found: there may be thousands
            if key_of(module.arrays) == key:
                return prepared_by(module)
        kept = _KEPT.get(key)
        if kept is None:
            kept = Prepared(key, prepare(matrix_of(arrays, rows, columns)), arrays)
            _KEPT[key] = kept
            while len(_KEPT) > KEPT:
                _KEPT.popitem(last=False)
        _KEPT.move_to_end(key)
        return kept.operator


@torch.library.custom_op("spectral_engine::sparse_linear", mutates_args=())
def sparse_linear(
    x: torch.Tensor,
    values: torch.Tensor,
    places: torch.Tensor,
    last: torch.Tensor,
    rows: int,
    columns: int,
) -> torch.Tensor:
    """y = x S^T, (..., m) in x's dtype, of x (..., n) and S (m, n)."""
    out: torch.Tensor = _operator((values, places, last), rows, columns)(x)
    return out


@sparse_linear.register_fake
def _(
    x: torch.Tensor,
    values: torch.Tensor,
    places: torch.Tensor,
    last: torch.Tensor,
    rows: int,
    columns: int,
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], rows))


@torch.library.custom_op("spectral_engine::sparse_linear_back", mutates_args=())
def sparse_linear_back(
    g: torch.Tensor,
    values: torch.Tensor,
    places: torch.Tensor,
    last: torch.Tensor,
    rows: int,
    columns: int,
) -> torch.Tensor:
    """g S, (..., n) in g's dtype, of g (..., m) and S (m, n)."""
    dense = unpack(matrix_of((values, places, last), rows, columns))
    return torch.matmul(g, dense.to(g.dtype))


@sparse_linear_back.register_fake
def _(
    g: torch.Tensor,
    values: torch.Tensor,
    places: torch.Tensor,
    last: torch.Tensor,
    rows: int,
    columns: int,
) -> torch.Tensor:
    return g.new_empty((*g.shape[:-1], columns))


@torch.library.custom_op("spectral_engine::sparse_rows", mutates_args=())
def sparse_rows(
    indices: torch.Tensor,
    values: torch.Tensor,
    places: torch.Tensor,
    last: torch.Tensor,
    rows: int,
    columns: int,
) -> torch.Tensor:
    """Rows of S (m, n), made dense: (..., n) of indices (...)."""
    wanted, where = torch.unique(indices, return_inverse=True)
    if wanted.numel() == 0:
        return values.new_empty((*indices.shape, columns))
    if int(wanted[0]) < 0 or int(wanted[-1]) >= rows:
        raise IndexError(f"indices: expected 0 to {rows - 1}; got {int(wanted[0])} to {wanted[-1]}")
    if places.ndim == 1:
        found = _operator((values, places, last), rows, columns).rows(wanted.long().numpy())
        made: torch.Tensor = found[where]
        return made
    if places.shape[1] < -(-columns // 8):
        own = values.view(rows, -1)[wanted].reshape(-1)
        picked = matrix_of((own, places[wanted], last), wanted.numel(), columns)
        chosen: torch.Tensor = unpack(picked)[where]
        return chosen
    starts = last.to(torch.int64)
    ends = torch.cat([starts[1:], starts.new_tensor([values.numel()])])
    starts, counts = starts[wanted], (ends - starts)[wanted]
    offsets = counts.cumsum(0) - counts
    total = int(counts.sum())
    spots = torch.arange(total, device=values.device)
    spots += torch.repeat_interleave(starts - offsets, counts, output_size=total)
    part = Packed(values[spots], places[wanted], offsets.to(last.dtype), (wanted.numel(), columns))
    dense: torch.Tensor = unpack(part)
    return dense[where]


@sparse_rows.register_fake
def _(
    indices: torch.Tensor,
    values: torch.Tensor,
    places: torch.Tensor,
    last: torch.Tensor,
    rows: int,
    columns: int,
) -> torch.Tensor:
    return values.new_empty((*indices.shape, columns))


@torch.library.custom_op("spectral_engine::sparse_dense", mutates_args=())
def sparse_dense(
    values: torch.Tensor, places: torch.Tensor, last: torch.Tensor, rows: int, columns: int
) -> torch.Tensor:
    """S (m, n), made dense."""
    dense: torch.Tensor = unpack(matrix_of((values, places, last), rows, columns))
    return dense


@sparse_dense.register_fake
def _(
    values: torch.Tensor, places: torch.Tensor, last: torch.Tensor, rows: int, columns: int
) -> torch.Tensor:
    return values.new_empty((rows, columns))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    _, *arrays, ctx.rows, ctx.columns = inputs
    ctx.save_for_backward(*arrays)


def _back(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:
    return sparse_linear_back(g, *ctx.saved_tensors, ctx.rows, ctx.columns), *[None] * 5


def _back_twice(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:
    return sparse_linear(g, *ctx.saved_tensors, ctx.rows, ctx.columns), *[None] * 5


sparse_linear.register_autograd(_back, setup_context=_keep)
sparse_linear_back.register_autograd(_back_twice, setup_context=_keep)
