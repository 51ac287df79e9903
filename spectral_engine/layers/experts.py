"""Along which axis of a mixture of experts' weights the inputs lie: the last one or the middle one.

Along the wrong one, an N:M pattern speeds nothing up, a row is no output feature, and input
statistics weigh the outputs.
"""

from torch import nn
from torch.nn.parameter import is_lazy

#: Classes of transformers that store (experts, in, out), in versions whose modules do not say so.
_INPUT_FIRST = ("AriaExperts", "GptOssExperts", "Llama4TextExperts", "OpenAIPrivacyFilterExperts")
#: The matrices whose shapes tell: that into the experts, gate and value in one, and that out.
_INTO, _OUT_OF = "gate_up_proj", "down_proj"


def stores_inputs_first(module: nn.Module) -> bool:
    """Whether 3-D parameters of an experts module are (experts, in, out).

    Args:
        module: of a class named "...Experts".

    Returns:
        What the module says (`is_transposed`, as transformers sets it); else by its class; else by
        the shapes of `gate_up_proj` and `down_proj`, of which only one reading fits: with h
        features and i between, (i + i, h) and (h, i), or (h, i + i) and (i, h). False where nothing
        tells: (experts, out, in), as most store it; `register_layer` says otherwise.
    """
    told = getattr(module, "is_transposed", None)
    if isinstance(told, bool):
        return told
    if type(module).__name__ in _INPUT_FIRST:
        return True
    into, out_of = module._parameters.get(_INTO), module._parameters.get(_OUT_OF)
    if into is None or out_of is None or is_lazy(into) or is_lazy(out_of):
        return False
    if into.ndim != 3 or out_of.ndim != 3:
        return False
    return into.shape[1] == out_of.shape[2] and into.shape[2] == 2 * out_of.shape[1]
