"""What of a model is fitted together: its repeated blocks, and what lies beside them.

A block is an element of the outermost ModuleList or Sequential that holds several modules of one
class with modules inside them: the layers of a transformer, the stages of a ResNet. Modules beside
the blocks (a head, a last normalisation) are fitted by themselves. A model without blocks is fitted
as a whole.
"""

from collections import Counter
from collections.abc import Iterator

from torch import nn

_BATCH_NORMS = nn.modules.batchnorm._NormBase


def units_of(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that are fitted each by itself, by name, in the order of the model's modules.

    Args:
        model: of any kind.

    Returns:
        Modules that hold all parameters between them, none inside another; the model itself, under
        the name "", where it has no blocks.
    """
    return dict(_units("", model))


def _units(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    holds = any(_is_list_of_blocks(part) for part in module.modules())
    if not holds:
        yield name, module
        return
    blocks = _is_list_of_blocks(module)
    for local, child in module.named_children():
        inner = f"{name}.{local}" if name else local
        if blocks:
            yield inner, child
        else:
            yield from _units(inner, child)


def _is_list_of_blocks(module: nn.Module) -> bool:
    """Whether it is a list of modules of which several are of one class and hold others."""
    if not isinstance(module, nn.ModuleList | nn.Sequential):
        return False
    kinds = Counter(type(child) for child in module if next(child.children(), None) is not None)
    return any(count > 1 for count in kinds.values())


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """The normalisations in a module that keep running statistics."""
    return [
        part
        for part in module.modules()
        if isinstance(part, _BATCH_NORMS) and getattr(part, "running_mean", None) is not None
    ]
