"""Simulated images, sounds and feature vectors, of any size, for a network that nobody has data of.

Nothing is known of the data but its shape. What real images and sounds have in common is that
neighbours are alike (their power falls as 1 / frequency^2) and that what is there has edges; white
noise has neither, and layers fitted on it were no better than magnitude. A quarter of the samples
is of each kind. Images: fields with such a spectrum, about 0; the same between 0 and 1; filled
shapes on an empty ground; lines on an empty ground. Along one axis, as of sound: fields whose power
falls as 1 / frequency^2 and as 1 / frequency; harmonics over noise; noise.
"""

import math

import torch
from torch import Generator, Tensor

#: The kinds take turns, so that any run of samples shows them all.
KINDS = 4
#: A vector is taken for a flattened image where that would have a side of at least this.
LEAST_SIDE = 8
HARMONICS = 8


def fields(count: int, shape: tuple[int, ...], random: Generator) -> Tensor:
    """Simulated samples.

    Args:
        count: how many.
        shape: of one: (features,); or (channels, ...) with one to three axes of space or time.
        random: draws them.

    Returns:
        (count, *shape), float32.
    """
    if len(shape) == 1:
        image = as_image(shape[0])
        if image is None:
            return torch.randn(count, *shape, generator=random)
        return fields(count, image, random).flatten(1)
    kinds = (_red, _pink, _tones, _white) if len(shape) == 2 else (_red, _positive, _shapes, _lines)
    each = -(-count // KINDS)
    found = torch.stack([kind(each, shape, random) for kind in kinds], 1)
    return found.flatten(0, 1)[:count]


def as_image(features: int) -> tuple[int, int, int] | None:
    """(channels, side, side) of which `features` may be the flattened pixels, None for none.

    Example:
        >>> as_image(784), as_image(3072), as_image(500)
        ((1, 28, 28), (3, 32, 32), None)
    """
    for channels in (1, 3):
        side = math.isqrt(features // channels)
        if side >= LEAST_SIDE and channels * side * side == features:
            return channels, side, side
    return None


def smooth(count: int, shape: tuple[int, ...], random: Generator, power: float = 1.0) -> Tensor:
    """Gaussian fields (count, *shape) whose amplitude falls as frequency^-power.

    Each channel of each sample has mean 0 and variance 1.
    """
    axes = tuple(range(2, len(shape) + 1))
    noise = torch.randn(count, *shape, generator=random)
    squares = torch.zeros(())
    for axis in axes:
        size = noise.shape[axis]
        along = [size if other == axis else 1 for other in range(len(shape) + 1)]
        squares = squares + (torch.fft.fftfreq(size) * size).square().reshape(along)
    gain = squares.sqrt().clamp_min(1.0) ** -power
    found: Tensor = torch.fft.ifftn(torch.fft.fftn(noise, dim=axes) * gain, dim=axes).real
    found = found - found.mean(axes, keepdim=True)
    spread = found.square().mean(axes, keepdim=True).sqrt()
    return found / spread.clamp_min(torch.finfo(found.dtype).tiny)


def _red(count: int, shape: tuple[int, ...], random: Generator) -> Tensor:
    return smooth(count, shape, random)


def _pink(count: int, shape: tuple[int, ...], random: Generator) -> Tensor:
    return smooth(count, shape, random, 0.5)


def _white(count: int, shape: tuple[int, ...], random: Generator) -> Tensor:
    return smooth(count, shape, random, 0.0)


def _tones(count: int, shape: tuple[int, ...], random: Generator) -> Tensor:
    """Harmonics of one tone that weaken with their number, over noise; mean 0 and variance 1."""
    time = torch.arange(shape[-1])
    pitch = 0.25 * 0.02 ** _each(count, 1, shape, random)  # of a cycle a step
    found = 0.3 * torch.randn(count, *shape, generator=random)
    for number in range(1, HARMONICS + 1):
        turn = number * pitch * time + _each(count, 1, shape, random)
        heard = (number * pitch < 0.5).float() / number
        found = found + heard * torch.sin(2.0 * math.pi * turn)
    found = found - found.mean(-1, keepdim=True)
    return found / found.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-30)


def _positive(count: int, shape: tuple[int, ...], random: Generator) -> Tensor:
    return smooth(count, shape, random).mul(0.3).add(0.5).clamp(0.0, 1.0)


def _shapes(count: int, shape: tuple[int, ...], random: Generator) -> Tensor:
    """What of a smooth field is over a level, filled with one shade a channel."""
    field = smooth(count, (1, *shape[1:]), random, 1.5)
    level = _each(count, 1, shape, random, normal=True) * 0.5 + 0.7
    shade = _each(count, shape[0], shape, random) + 0.5
    return (field > level).float() * shade


def _lines(count: int, shape: tuple[int, ...], random: Generator) -> Tensor:
    """Where a smooth field is near 0, in the part that another one leaves."""
    one = (1, *shape[1:])
    width = _each(count, 1, shape, random) * 0.25 + 0.1
    line = (smooth(count, one, random, 2.0).abs() < width).float()
    end = _each(count, 1, shape, random, normal=True) * 0.5
    line = line * (smooth(count, one, random, 2.0) > end).float()
    shade = _each(count, shape[0], shape, random) * 0.5 + 0.6
    return _softened(line) * shade


def _softened(field: Tensor) -> Tensor:
    """Each entry with its neighbours of every axis, so that edges are no steps."""
    for axis in range(2, field.ndim):
        field = (field.roll(1, axis) + field + field.roll(-1, axis)) / 3.0
    return (1.5 * field).clamp(0.0, 1.0)


def _each(
    count: int, channels: int, shape: tuple[int, ...], random: Generator, *, normal: bool = False
) -> Tensor:
    """One number a sample and channel, shaped to be spread over the axes of `shape`."""
    drawn = (torch.randn if normal else torch.rand)(count, channels, generator=random)
    return drawn.reshape(count, channels, *(1 for _ in shape[1:]))
