"""What of a model is fitted together: its repeated blocks, and what lies beside them.

A block is an element of the outermost ModuleList or Sequential that holds several modules of one
class with modules inside them: the layers of a transformer, the stages of a ResNet. Modules beside
the blocks (a head, a last normalisation) are fitted by themselves. A model without blocks is fitted
as a whole.
"""

from collections import Counter
from collections.abc import Iterator

from torch import nn


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


def alike(model: nn.Module) -> bool:
    """Whether blocks of the very same shapes hold most of a model's entries, embeddings apart.

    Those of a language model do; the stages of a convolutional network are of many shapes.
    """
    tables = {id(one.weight) for one in model.modules() if isinstance(one, nn.Embedding)}
    forms: Counter[tuple[tuple[int, ...], ...]] = Counter()
    sizes: dict[tuple[tuple[int, ...], ...], int] = {}
    whole = 0
    for unit in units_of(model).values():
        own = [p for p in unit.parameters() if id(p) not in tables]
        form = tuple(tuple(p.shape) for p in own)
        forms[form] += 1
        sizes[form] = sum(p.numel() for p in own)
        whole += sizes[form]
    return any(2 * count * sizes[form] > whole for form, count in forms.items() if count > 1)
