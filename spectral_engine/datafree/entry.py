"""What a model takes for an input, found out by trying.

A model does not say what it takes. Models of transformers name it; of others the first layer says
whether it is tokens, images, a series or features, and how many channels; the size of an image or
the length of a series is found by trying, since only some let a model run through.
"""

import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from spectral_engine.calibration.batches import call
from spectral_engine.calibration.forward import evaluating
from spectral_engine.datafree.dream import output_of
from spectral_engine.datafree.fields import fields

#: Sides of images, and lengths of series, in the order in which they are tried.
SIDES = (224, 128, 96, 64, 48, 32, 28, 256, 240, 299, 320, 384, 512)
LENGTHS = (4096, 2048, 1024, 512, 256, 128, 64, 32, 8000, 16000)
#: Tokens, or steps of a sequence of features, a sample; fewer where the vocabulary is an alphabet.
STEPS, ALPHABET, WORD = 128, 256, 16
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


@dataclass(frozen=True)
class Entry:
    """What one sample of a model's inputs looks like.

    shape: of a sample as the model takes it. drawn: of the field that it is drawn as; None for
        tokens.
    vocabulary: the number of tokens, 0 where the inputs are numbers.
    name: of the argument, where it is given by name, with `more`.
    macs: multiplications of a forward pass, a sample; None before it was tried.
    """

    shape: tuple[int, ...]
    drawn: tuple[int, ...] | None = None
    vocabulary: int = 0
    name: str | None = None
    more: tuple[tuple[str, Any], ...] = ()
    macs: float | None = None

    def draw(self, count: int, random: Generator) -> Tensor:
        """Samples (count, *shape)."""
        if self.drawn is None:
            return torch.randint(self.vocabulary, (count, *self.shape), generator=random)
        found = fields(count, self.drawn, random)
        if self.drawn[::-1] == self.shape and len(self.shape) == 2:
            return found.mT.contiguous()  # channels last, of a sequence
        return found.reshape(count, *self.shape)

    def batch(self, samples: Tensor) -> Any:
        """Samples as `calibrate` and the model take them."""
        return samples if self.name is None else {self.name: samples, **dict(self.more)}

    def __str__(self) -> str:
        size = " x ".join(map(str, self.shape))
        return f"{size} tokens of {self.vocabulary}" if self.vocabulary else f"{size} numbers"


def entry_of(model: nn.Module, random: Generator) -> Entry:
    """The first that lets the model run through.

    Raises:
        ValueError: says why there is none.
    """
    reason = _reason_against(model)
    if reason:
        raise ValueError(reason)
    tensors = [*model.parameters()]
    device = tensors[0].device
    dtype = next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)
    tried = 0
    with evaluating(model):
        for entry in _candidates(model):
            tried += 1
            samples = entry.draw(2, random).to(device)
            samples = samples.to(dtype) if samples.is_floating_point() else samples
            macs = _macs(model, entry, samples)
            if macs is not None:
                return replace(entry, macs=macs)
    raise ValueError(f"none of {tried} kinds of inputs let the model run through")


def _reason_against(model: nn.Module) -> str | None:
    tensors = [*model.parameters()]
    if not tensors:
        return "the model has no weights"
    if any(t.is_meta or hasattr(t, "device_mesh") for t in tensors):
        return "its weights are elsewhere"
    if len({t.device for t in tensors}) > 1:
        return "its weights are on several devices"
    if not _names_input(model):
        places = inspect.signature(model.forward).parameters.values()
        own = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        needed = [p for p in places if p.kind in own and p.default is inspect.Parameter.empty]
        if len(needed) != 1:
            return f"its forward takes {len(needed)} arguments"
    return None


def _names_input(model: nn.Module) -> bool:
    """Whether it says itself what its inputs are, as models of transformers do."""
    return isinstance(getattr(model, "main_input_name", None), str) and hasattr(model, "config")


def _candidates(model: nn.Module) -> Iterator[Entry]:
    if _names_input(model):
        yield from _named(model)
        return
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            length = WORD if module.num_embeddings <= ALPHABET else STEPS
            for steps in (length, length // 4):
                yield Entry((steps,), vocabulary=module.num_embeddings)
            return
        if isinstance(module, _CONVOLUTIONS):
            yield from _for_convolution(module)
            return
        if isinstance(module, _RECURRENT):
            yield Entry((STEPS // 4, module.input_size), (module.input_size, STEPS // 4))
            yield Entry((module.input_size,), (module.input_size,))
            return
        if isinstance(module, nn.Linear):
            yield Entry((module.in_features,), (module.in_features,))
            yield Entry((STEPS // 4, module.in_features), (module.in_features, STEPS // 4))
            return


def _for_convolution(module: nn.Module) -> Iterator[Entry]:
    """Images or series with the channels of a model's first convolution."""
    channels = int(module.in_channels)  # type: ignore[arg-type]
    axes = len(module.kernel_size)  # type: ignore[arg-type]
    along = [size for size in module.kernel_size if size > 1]  # type: ignore[union-attr]
    if axes > 1 and len(along) != 1:
        for side in SIDES if axes == 2 else (64, 32, 16):
            shape = (channels, *(side for _ in range(axes)))
            yield Entry(shape, shape)
    for length in LENGTHS:
        if axes == 1:
            yield Entry((channels, length), (channels, length))
        elif len(along) == 1:
            ones = tuple(length if size > 1 else 1 for size in module.kernel_size)  # type: ignore[union-attr]
            yield Entry((channels, *ones), (channels, length))
        if channels == 1:
            yield Entry((length,), (1, length))


def _named(model: nn.Module) -> Iterator[Entry]:
    """Of a model of transformers: tokens, images or sound, with the sizes of its configuration."""
    name = str(model.main_input_name)
    config: Any = model.config
    signature = inspect.signature(model.forward).parameters
    more = (("use_cache", False),) if "use_cache" in signature else ()
    if name == "input_ids":
        vocabulary = getattr(config, "vocab_size", None)
        if isinstance(vocabulary, int):
            longest = getattr(config, "max_position_embeddings", STEPS)
            length = min(STEPS, longest if isinstance(longest, int) else STEPS)
            yield Entry((length,), vocabulary=vocabulary, name=name, more=more)
    elif name == "pixel_values":
        channels = getattr(config, "num_channels", 3)
        size = getattr(config, "image_size", None)
        for sides in [size] if size is not None else SIDES:
            height, width = sides if isinstance(sides, tuple | list) else (sides, sides)
            shape = (channels, height, width)
            yield Entry(shape, shape, name=name, more=more)
    elif name == "input_values":
        for length in (16000, *LENGTHS):
            yield Entry((length,), (1, length), name=name, more=more)


def _macs(model: nn.Module, entry: Entry, samples: Tensor) -> float | None:
    """Multiplications a sample of layers with weights, None where the model does not run."""
    total = [0.0]

    def hook(module: nn.Module, _: Any, output: Any) -> None:
        found = output_of(output)
        sizes = [p.numel() for p in module.parameters(recurse=False) if p.ndim > 1]
        if found is None or not sizes or isinstance(module, nn.Embedding):
            return
        axis = 1 if isinstance(module, _CONVOLUTIONS) else -1
        total[0] += found.numel() / found.shape[axis] * math.fsum(sizes)

    handles = [module.register_forward_hook(hook) for module in model.modules()]
    try:
        found = output_of(call(model, entry.batch(samples)))
    except Exception:  # whatever a model raises at inputs that it is not made for
        return None
    finally:
        for handle in handles:
            handle.remove()
    if found is None or not bool(torch.isfinite(found).all()):
        return None
    return max(total[0] / len(samples), 1.0)
