"""Sums of x x^T and x over samples, the same to the bit in whatever order they come.

Sums of floating-point numbers hang on their order, and so would what is pruned by them on how many
processes share the batches. Here every part's contribution is rounded to one grid, and sums of
multiples of it are exact in float64. The grid is fixed beforehand: features are scaled by powers of
two to a root mean square of about one, as it is in the first samples.
"""

import math
from typing import Any

import torch
import torch.distributed as dist
from spectral_kernels.spectra import full_precision

from spectral_engine.matrix.moments import Moments

#: Columns of H that one product makes; those right of its first only, since H is symmetric.
PANEL = 256
#: Samples that are expected, unless the caller says.
ROWS = 1 << 16
#: The grid is so many bits below what a sum comes to; float32 has 24. The sum may become 2^20 times
#: what was expected and is exact all the same. Of float64 inputs it is finer, and less may come.
_BITS, _BITS_OF_DOUBLES = 32, 40
#: Adding this times the grid, and taking it away again, rounds to the grid.
_ROUNDER = 1.5 * 2.0**52
#: A feature's scale is at least this share of the largest.
_LEAST_SCALE = 2.0**-12


def scale_of(samples: torch.Tensor) -> torch.Tensor | None:
    """A power of two for each feature, about its root mean square, (..., n) of (..., N, n).

    Features that are zero in these samples, and may not stay so, have the median of the others;
    None where all are zero.
    """
    rms = samples.double().square().mean(-2).sqrt()
    there = torch.isfinite(rms) & (rms > 0)
    if not bool(there.any()):  # NaN and infinity are for the moments to show
        return None if not bool(rms.count_nonzero()) else torch.ones_like(rms)
    rms = torch.where(there, rms.clamp(min=_LEAST_SCALE * float(rms[there].max())), 1.0)
    typical = float(rms[there].median())
    exponents = torch.where(there, rms, typical).log2().ceil()
    return torch.exp2(exponents.clamp(-100, 100))


class Accumulator:
    """Sums of x x^T and x over samples that come in any number of parts, in any order.

    Products are taken in float32 (float64 for float64 inputs), rounded to a grid of about 2^-32 of
    the sum's diagonal, and summed exactly in float64. Only the upper block triangle is summed.

    Args:
        features, batch, dtype, device: of the inputs: n, of a stack of b matrices or None.
        scale: a power of two for each feature, (n,) or (b, n); see `scale_of`. None takes that of
            the first part that is not all zero.
        rows: about how many samples will come.
    """

    def __init__(
        self,
        features: int,
        batch: int | None,
        dtype: torch.dtype,
        device: torch.device,
        scale: torch.Tensor | None = None,
        rows: int = ROWS,
    ) -> None:
        wide = dtype == torch.float64
        self._dtype = torch.float64 if wide else torch.float32
        self._shape = (features,) if batch is None else (batch, features)
        self._scale = None if scale is None else scale.double().to(device)
        bits = (_BITS_OF_DOUBLES if wide else _BITS) - math.ceil(math.log2(max(rows, 1)))
        self._rounder = _ROUNDER * 2.0**-bits
        double: dict[str, Any] = {"dtype": torch.float64, "device": device}
        self._second = torch.zeros((*self._shape, features), **double)
        self._cross: torch.Tensor | None = None
        self._sum = torch.zeros(self._shape, **double)
        self._dense_sum = torch.zeros_like(self._sum)
        self._weights: list[float] = []
        self.count = 0

    def add(
        self,
        samples: torch.Tensor,
        dense: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
    ) -> None:
        """Add samples.

        Args:
            samples: (N, n), or (b, N, n).
            dense: the same samples in the dense model.
            weights: (N,), how much each counts; None for 1.
        """
        self.count += samples.shape[-2]
        self._weights.append(
            float(samples.shape[-2]) if weights is None else float(weights.double().sum())
        )
        self.learn(samples)
        if self._scale is None:
            return  # nothing but zeros
        inverse = (1.0 / self._scale).to(self._dtype)[..., None, :]
        x = samples.to(self._second.device, self._dtype) * inverse
        w = None if weights is None else weights.to(x)[:, None]
        weighed = x if w is None else x * w
        with full_precision(torch):
            for start in range(0, self._shape[-1], PANEL):
                panel = self._second[..., start : start + PANEL, start:]
                panel += self._rounded(x[..., start : start + PANEL].mT @ weighed[..., start:])
            self._sum += self._rounded(weighed.sum(-2, dtype=torch.float64))
            if dense is not None:
                y = dense.to(x) * inverse
                self._require_cross()
                for start in range(0, self._shape[-1], PANEL):
                    panel = self._cross[..., start : start + PANEL, :]  # type: ignore[index]
                    panel += self._rounded(y[..., start : start + PANEL].mT @ weighed)
                other = y if w is None else y * w
                self._dense_sum += self._rounded(other.sum(-2, dtype=torch.float64))

    def learn(self, samples: torch.Tensor) -> None:
        """Take the features' scale of the first samples that are not all zero, and add nothing."""
        if self._scale is None:
            found = scale_of(samples)
            self._scale = None if found is None else found.to(self._second.device)

    @property
    def has_scale(self) -> bool:
        """Whether the features' scale is known."""
        return self._scale is not None

    def _rounded(self, values: torch.Tensor) -> torch.Tensor:
        """Values rounded to the grid, whatever is summed already."""
        double = values.double()
        double += self._rounder
        double -= self._rounder
        return double

    def _require_cross(self) -> None:
        if self._cross is None:
            self._cross = torch.zeros_like(self._second)

    # Of several processes

    @property
    def tally(self) -> tuple[int, list[float]]:
        """How many samples there are, and the weights of the parts."""
        return self.count, self._weights

    def together(
        self, tallies: list[tuple[int, list[float]]], group: Any, owner: int | None, cross: bool
    ) -> "Accumulator":
        """The sums over what all processes of a group have added; this one stays as it is.

        Args:
            tallies: of all processes.
            owner: the rank of the one that gets them, and whose result counts; None for all.
            cross: whether dense samples were added.
        """
        total = Accumulator.__new__(Accumulator)
        vars(total).update(vars(self))
        if cross:
            self._require_cross()
        for name in ("_second", "_sum", *(("_cross", "_dense_sum") if cross else ())):
            summed = getattr(self, name).clone()
            if owner is None:
                dist.all_reduce(summed, group=group)
            else:
                dist.reduce(summed, dist.get_global_rank(group, owner), group=group)
            setattr(total, name, summed)
        total.count = sum(count for count, _ in tallies)
        total._weights = [weight for _, weights in tallies for weight in weights]
        return total

    def moments(self) -> Moments | None:
        """The moments, or None where there were no samples. It consumes the sums: call it once."""
        if self.count == 0:
            return None
        if self._scale is None:
            self._scale = torch.ones_like(self._sum)
        for start in range(0, self._shape[-1], PANEL):
            stop = start + PANEL
            panel = self._second[..., start:stop, stop:]
            self._second[..., stop:, start:stop] = panel.mT
        total = math.fsum(self._weights)  # to the bit in any order
        second = self._unscaled("_second", total)
        dense = None if self._cross is None else self._dense_sum * self._scale / total
        cross = None if self._cross is None else self._unscaled("_cross", total)
        mean = self._sum * self._scale / total
        return Moments(second, mean, self.count, cross, dense)

    def _unscaled(self, name: str, total: float) -> torch.Tensor:
        """A matrix of sums, let go of, as the means in the features' own units."""
        sums, scale = getattr(self, name), self._scale
        if scale is None:
            raise ValueError("moments: expected samples; there were none")
        delattr(self, name)
        found = torch.empty(sums.shape, dtype=self._dtype, device=sums.device)
        for start in range(0, self._shape[-1], PANEL):
            rows = sums[..., start : start + PANEL, :]
            rows *= scale[..., start : start + PANEL, None]
            rows *= scale[..., None, :]
            found[..., start : start + PANEL, :] = rows.div_(total)
        return found


def sum_bytes(features: int, batch: int | None) -> int:
    """Bytes of the sums of a layer's second moments."""
    return 8 * math.prod((batch or 1, features, features))


def moment_bytes(features: int, batch: int | None, dtype: torch.dtype) -> int:
    """Bytes of the second moments of a layer."""
    return (8 if dtype == torch.float64 else 4) * math.prod((batch or 1, features, features))
