"""Adapters: small trained matrices beside a weight, which pruning the weight is not about.

Libraries such as peft put modules of a few columns (`lora_A`, `lora_B`) next to a weight, and add
their product to it. `prune` leaves them alone unless `targets` names them.
"""

from collections.abc import Sequence

from torch import nn

from spectral_engine.layers.selector import Chooser


def adapters_in(model: nn.Module) -> dict[int, str]:
    """The modules that belong to adapters.

    Args:
        model: one whose layers may have adapters.

    Returns:
        From a module's id to what the adapter's part is called, such as "lora_A": the children that
        a module of peft lists in its `adapter_layer_names`, and those called "lora_...".
    """
    found: dict[int, str] = {}
    for module in model.modules():
        listed = getattr(module, "adapter_layer_names", ())
        names = listed if isinstance(listed, tuple | list) else ()
        for name, child in module._modules.items():
            if child is not None and (name in names or name.lower().startswith("lora_")):
                found |= {id(part): name for part in child.modules() if id(part) not in found}
    return found


def reason_against_adapter(adapter: str, names: Sequence[str], chooser: Chooser) -> str | None:
    """None if a pattern chooses this part of an adapter and no other weight, else why it is left.

    A class or a glob such as "*q_proj*" is meant for the weight beside the adapter, so that a
    pattern chooses a part only if it would not match the same name without the part's own.
    """
    opt_in = f"an adapter's {adapter}"
    reason = chooser.reason_against(names, (), opt_in)
    if reason is not None:
        return reason
    others = [name.replace(adapter, "") for name in names]
    if chooser.reason_against(others, (), opt_in) is None:
        return f"{opt_in}; name it in targets to prune it"
    return None
