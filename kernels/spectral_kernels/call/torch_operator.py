"""`sparsify` as an operator of torch: torch.compile and torch.export see through, autograd passes.

Importing this module registers `torch.ops.spectral_kernels.sparsify`; nothing else does. It takes
what `sparsify` takes and returns the weight alone. One implementation serves every device, since
`backend` chooses by the tensor; the fake one tells the compiler the shape.

The gradient is that of the draw as it fell (straight through): an entry that was kept passes its
gradient on, divided by its probability where the values were, an entry that was dropped passes
none, and how probabilities and thresholds depend on the weight is left out. So the gradient of an
unbiased draw is itself unbiased for the dense gradient of a loss that is linear in the weight.
No mask is stored: what was kept is what is not 0 in the result, and S / A is the factor 1 / p, from
two tensors that live anyway, the parameter and the input of the layer's product.
"""

import torch

from spectral_kernels._validation import word
from spectral_kernels.call.sparsify import sparsify as sparsify_array

_SIGN, _WORD = 1 << 63, 1 << 64


@torch.library.custom_op("spectral_kernels::sparsify", mutates_args=())
def _operator(
    weight: torch.Tensor,
    sparsity: float,
    law: str,
    law_parameter: float | None,
    rescale: bool,
    score: str,
    left: torch.Tensor | None,
    right: torch.Tensor | None,
    mixture: list[float],
    row: torch.Tensor | None,
    column: torch.Tensor | None,
    group: str,
    seed: int,
    stream: int,
    row_offset: int,
    column_offset: int,
    check: bool,
) -> torch.Tensor:
    result: torch.Tensor = sparsify_array(
        weight,
        sparsity=sparsity,
        law=law,
        law_parameter=law_parameter,
        rescale=rescale,
        score=score,
        factors=None if left is None or right is None else (left, right),
        mixture=(mixture[0], mixture[1]),
        row=row,
        column=column,
        group=group,
        seed=seed % _WORD,
        stream=stream,
        row_offset=row_offset,
        column_offset=column_offset,
        check=check,
    ).weight
    return result


@_operator.register_fake
def _(weight: torch.Tensor, *_: object) -> torch.Tensor:
    return weight.new_empty(weight.shape)


def _save(
    ctx: torch.autograd.function.FunctionCtx, inputs: tuple[object, ...], output: torch.Tensor
) -> None:
    weight, rescale = inputs[0], inputs[4]
    ctx.rescale = rescale  # type: ignore[attr-defined]
    ctx.save_for_backward(output, *((weight,) if rescale else ()))


def _backward(
    ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor
) -> tuple[torch.Tensor | None, ...]:
    output, *saved = ctx.saved_tensors  # type: ignore[attr-defined]
    kept = output != 0
    if saved:
        wide = torch.promote_types(output.dtype, torch.float32)
        inverse = output.to(wide) / saved[0].to(wide)
        gradient = (gradient.to(wide) * inverse).to(gradient.dtype)
    zero = torch.zeros((), dtype=gradient.dtype, device=gradient.device)
    return torch.where(kept, gradient, zero), *[None] * 16


_operator.register_autograd(_backward, setup_context=_save)


def sparsify(
    weight: torch.Tensor,
    *,
    sparsity: float,
    law: str = "threshold",
    law_parameter: float | None = None,
    rescale: bool = False,
    score: str = "magnitude",
    factors: tuple[torch.Tensor, torch.Tensor] | None = None,
    mixture: tuple[float, float] = (0.0, 0.0),
    row: torch.Tensor | None = None,
    column: torch.Tensor | None = None,
    group: str = "tensor",
    seed: int = 0,
    stream: int = 0,
    row_offset: int = 0,
    column_offset: int = 0,
    check: bool = True,
) -> torch.Tensor:
    """The weight that `spectral_kernels.sparsify` makes, differentiable in `weight`.

    Arguments and errors are the same; tensors are torch's, and only `weight` gets a gradient, with
    the draw held fixed as the module says. In bfloat16 and float16 the factor 1 / p of the gradient
    has the rounding of the result.
    """
    left, right = (None, None) if factors is None else factors
    seed = word(seed, "seed", 64)
    result: torch.Tensor = torch.ops.spectral_kernels.sparsify(
        weight, sparsity, law, law_parameter, rescale, score, left, right, list(mixture), row,
        column, group, seed - _WORD if seed >= _SIGN else seed, stream, row_offset, column_offset,
        check,
    )  # fmt: skip
    return result
