"""A model's pruned layers replaced by sparse modules, and by dense ones again."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from spectral_engine._util.checks import boolean
from spectral_engine._util.progress import Progress, check_progress, reporting
from spectral_engine.checkpoints.sparse import forms
from spectral_engine.compression.conv1d import SparseConv1D, is_conv1d
from spectral_engine.compression.convolution import SparseConv
from spectral_engine.compression.linear import SparseEmbedding, SparseLinear
from spectral_engine.compression.low_rank import SPARSE_LOW_RANK
from spectral_engine.compression.report import CompressedWeight, CompressReport
from spectral_engine.compression.weights import SparseWeight, parts_of_dense
from spectral_engine.factored.modules import LowRankLayer
from spectral_engine.layers.find import Layer, Skipped, find_layers
from spectral_engine.layers.selector import Selector
from spectral_engine.masking.holders import drop_mask

#: Which module takes the place of one of exactly this class: a subclass may use its weight itself.
SPARSE: dict[type[nn.Module], Any] = {
    nn.Linear: SparseLinear,
    nn.Embedding: SparseEmbedding,
    nn.Conv1d: SparseConv,
    nn.Conv2d: SparseConv,
    nn.Conv3d: SparseConv,
    **SPARSE_LOW_RANK,
}


def sparse_kind(kind: type) -> Any:
    """Which sparse module takes the place of one of exactly this class; None: there is none."""
    return SparseConv1D if is_conv1d(kind) else SPARSE.get(kind)


#: Called with a model, and whether it is compressed now, by what has to know of it.
FOLLOWERS: list[Callable[[nn.Module, bool], None]] = []
LARGER = "values and bits would not be smaller"
_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks",
    "_backward_pre_hooks",
)  # fmt: skip


def compress(
    model: nn.Module,
    *,
    targets: str | Iterable[str] | None = None,
    ignore: str | Iterable[str] | None = None,
    keep_negative_zero: bool = True,
    progress: Progress[CompressedWeight] = True,
) -> CompressReport:
    """Replace pruned layers of a model by sparse ones, which hold values and bits, nothing dense.

    Linear layers become `SparseLinear`, convolutions `SparseConv`, embeddings, where `targets`
    names them, `SparseEmbedding`; layers with factors keep these (`SparseLowRankLinear`). What
    would not become smaller stays as it is. The model is changed in place; its weights are frozen
    then, and masks go, as the zeros can no longer change.

    Args:
        model: pruned; every layer to replace must be inside another module.
        targets, ignore: class names, globs over names, or "re:...", as for `prune`.
        keep_negative_zero: see `compress_file`.
        progress: True for a bar on a terminal, False, or a function of each row.

    Returns:
        How each weight is stored, and what stays dense.

    Raises:
        TypeError, ValueError: name what was wrong; nothing is changed then.

    >>> import torch
    >>> import spectral_engine as se
    >>> model = torch.nn.Sequential(torch.nn.Linear(128, 128), torch.nn.ReLU())
    >>> _ = se.prune(model, "magnitude", 0.9)
    >>> report = se.compress(model)
    >>> model[0]
    SparseLinear(in_features=128, out_features=128, bias=True, sparsity=0.9000)
    >>> round(report.weights[0].bytes / report.weights[0].dense_bytes, 2)
    0.14
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module; got {type(model).__name__}")
    if sparse_kind(type(model)) is not None:
        sparse = sparse_kind(type(model)).__name__
        raise ValueError(
            f"model: expected a module that contains the layers; got a single "
            f"{type(model).__name__}, of which se.{sparse}.from_dense makes a sparse one"
        )
    boolean("keep_negative_zero", keep_negative_zero)
    check_progress(progress)
    selector = Selector.of(targets, ignore)
    layers, skipped = find_layers(model, selector)
    report = CompressReport(skipped=[*skipped], unmatched=selector.unmatched)
    made: dict[int, SparseWeight] = {}
    groups = _by_parameter(layers).values()
    with reporting(progress, "compressing", len(groups)) as done:
        for group in groups:
            reason = _reason_against(group, targets is not None)
            if reason is None:
                reason = _add(group[0], made, report, keep_negative_zero)
            if reason is None:
                done(report.weights[-1])
            else:
                report.skipped.append(Skipped(_name(group[0]), reason))
    for layer in layers:
        for module, local in layer.holders:
            if id(module) in made:
                drop_mask(module, local)
    _replace(model, made)
    _count(model, report)
    if made:
        _tell(model, True)
    return report


def decompress(model: nn.Module, *, progress: Progress[str] = True) -> int:
    """Replace the sparse layers of a model by dense ones, in place; the opposite of `compress`.

    Args:
        model: its dense weights can be trained again; `mask_zeros` keeps their zeros.
        progress: True for a bar on a terminal, False, or a function of the name of each layer.

    Returns:
        How many layers there were.

    Raises:
        TypeError: no model, or a sparse layer itself.

    >>> import torch
    >>> import spectral_engine as se
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64))
    >>> _ = se.prune(model, "magnitude", 0.9)
    >>> _ = se.compress(model)
    >>> se.decompress(model), model[0]
    (1, Linear(in_features=64, out_features=64, bias=True))
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module; got {type(model).__name__}")
    if isinstance(model, SparseWeight):
        raise TypeError("model: expected a module that contains sparse ones; use its to_dense()")
    check_progress(progress)
    made: dict[int, nn.Module] = {}
    weights: dict[tuple[int, int], nn.Parameter] = {}
    sparse = {
        name: module for name, module in model.named_modules() if isinstance(module, SparseWeight)
    }
    with reporting(progress, "decompressing", len(sparse)) as done:
        for name, module in sparse.items():
            dense: Any = module.to_dense()  # type: ignore[operator]
            key = (module.arrays[0].data_ptr(), module.arrays[1].data_ptr())
            dense.weight = weights.setdefault(key, dense.weight)
            _take_over(module, dense)
            made[id(module)] = dense
            done(name)
    _replace(model, made)
    _tell(model, False)
    return len(made)


def _by_parameter(layers: Iterable[Layer]) -> dict[int, list[Layer]]:
    groups: dict[int, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(id(layer.parameter), []).append(layer)
    return groups


def _reason_against(group: list[Layer], named: bool) -> str | None:
    """Why a weight is not replaced by values and bits, or None."""
    layer = group[0]
    modules = [module for module, _ in layer.holders]
    kinds = {type(module) for module in modules}
    unknown = sorted(kind.__name__ for kind in kinds if sparse_kind(kind) is None)
    if unknown:
        return f"there is no sparse module for {unknown[0]}"
    if any(local != "weight" for _, local in layer.holders):
        return "there is no sparse module for it"
    if not named and len(kinds) > 1 and nn.Embedding in kinds:
        return "shared with an embedding; name it in targets to compress it"
    if any(isinstance(one, nn.Embedding) and one.max_norm is not None for one in modules):
        return "an embedding that renormalises its rows"
    if any(_of(module).shape != layer.parameter.shape for module in modules):
        return "shared in another shape"
    if layer.parameter.dtype not in forms.DTYPES or not layer.parameter.numel():
        return f"{str(layer.parameter.dtype).removeprefix('torch.')} is not packed"
    if layer.parameter.is_meta:
        return "on the meta device"
    return None


def _add(
    layer: Layer, made: dict[int, SparseWeight], report: CompressReport, keep_negative_zero: bool
) -> str | None:
    """Make the sparse modules of a weight and its row; the reason where it stays dense."""
    weight = layer.parameter.detach()
    parts = parts_of_dense(weight if keep_negative_zero else weight + 0.0)
    size = sum(part.nbytes for part in parts.values())
    if size >= weight.nbytes:
        return LARGER
    for module, _ in layer.holders:
        made[id(module)] = sparse_module(module, parts)
        made[id(module)].settle()
    shape, dtype = tuple(weight.shape), str(weight.dtype).removeprefix("torch.")
    sparsity = 1.0 - parts[forms.VALUES].numel() / weight.numel()
    size += _factor_bytes(layer.module)
    report.weights.append(
        CompressedWeight(
            _name(layer), shape, dtype, forms.form_of(parts), sparsity, weight.nbytes, size
        )
    )
    return None


def sparse_module(module: Any, parts: Mapping[str, torch.Tensor]) -> SparseWeight:
    """The sparse module of these parts that takes the place of one that has a `sparse_kind`."""
    made: SparseWeight
    if type(module) in SPARSE_LOW_RANK:
        made = SPARSE_LOW_RANK[type(module)](parts, module)
    elif isinstance(module, nn.Embedding):
        made = SparseEmbedding(parts, tuple(module.weight.shape), module.padding_idx)
    elif is_conv1d(type(module)):
        made = SparseConv1D(parts, module)
    elif isinstance(module, nn.Linear):
        made = SparseLinear(parts, tuple(module.weight.shape), module.bias)
    else:
        made = SparseConv(parts, module)
    _take_over(module, made)
    return made


def _take_over(old: nn.Module, new: nn.Module) -> None:
    """Put the new module into the old one's mode, with its hooks."""
    new.train(old.training)
    for name in _HOOKS:
        hooks = getattr(old, name)
        if hooks:
            getattr(new, name).update(hooks)


def _replace(model: nn.Module, made: dict[int, Any]) -> None:
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child is not None and id(child) in made:
                module._modules[name] = made[id(child)]


def _tell(model: nn.Module, compressed: bool) -> None:
    for follower in FOLLOWERS:
        follower(model, compressed)


def _count(model: nn.Module, report: CompressReport) -> None:
    """The bytes of all parameters and buffers, each memory once."""
    seen: dict[int, int] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        seen[tensor.data_ptr()] = tensor.nbytes
    report.bytes = sum(seen.values())
    saved = sum(row.dense_bytes - row.bytes for row in report.weights)
    report.dense_bytes = report.bytes + saved


def _factor_bytes(module: nn.Module) -> int:
    """Of what a layer holds beside its sparse part; a dense layer would hold it in its weight."""
    if not isinstance(module, LowRankLayer):
        return 0
    return module.left.nbytes + module.right.nbytes


def _of(module: Any) -> torch.Tensor:
    weight: torch.Tensor = module.weight
    return weight


def _name(layer: Layer) -> str:
    return layer.name.removesuffix(f"[{layer.view.part}]") if layer.view.part else layer.name
