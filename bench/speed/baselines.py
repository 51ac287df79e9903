"""What the kernels are compared with: copies, and each operation as a user writes it in PyTorch.

A is a float tensor (m, n) on any device; `kept` is K, the number of entries to keep. The sampled
operations rescale a kept entry by its probability where their docstring says A / p.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

LOW_BITS = 18
BINS = 8192


def copy(A: Tensor, out: Tensor) -> Tensor:
    """The parallel copy into an existing array; torch shares it among its threads."""
    return out.copy_(A)


def numpy_copy(A: Tensor, out: Tensor) -> None:
    """NumPy's copy into an existing array; one thread."""
    np.copyto(as_numpy(out), as_numpy(A))


def numpy_copy_new(A: Tensor) -> np.ndarray:
    """NumPy's copy into a new array; one thread."""
    return as_numpy(A).copy()


def as_numpy(A: Tensor) -> np.ndarray:
    """The tensor's memory; NumPy has no bfloat16, so 16-bit entries come as integers."""
    return (A.view(torch.int16) if A.dtype == torch.bfloat16 else A).numpy()


def histogram(A: Tensor) -> tuple[Tensor, Tensor]:
    """Count and sum of the low bits of |A|, by its leading bits as float32; zeros left out."""
    bits = A.abs().float().flatten().view(torch.int32)
    bins = (bits >> LOW_BITS).long()
    count = torch.bincount(bins, minlength=BINS)
    count[0] -= (bits == 0).sum()
    low = torch.zeros(BINS, dtype=torch.int64, device=A.device)
    low.scatter_add_(0, bins, (bits & ((1 << LOW_BITS) - 1)).long())
    return count, low


def draw(A: Tensor, p: Tensor, rescale: bool) -> Tensor:
    """A, or A / p, where a uniform number is under p, else 0."""
    keep = torch.rand_like(p) < p
    return torch.where(keep, A / p if rescale else A, 0.0).to(A.dtype)


def sample(A: Tensor, c: float) -> Tensor:
    """A / p with p = min(1, c |A|), for a c already known."""
    return draw(A, (A.abs().float() * c).clamp(max=1.0), rescale=True)


def keep_largest(A: Tensor, threshold: float) -> Tensor:
    """A where |A| is at least a threshold already known."""
    return torch.where(A.abs() >= threshold, A, 0.0)


def normalised(s: Tensor, kept: int) -> Tensor:
    """p = min(1, K s / sum s): too few are kept where the 1 cuts in, as at 50 %."""
    return (s * (kept / s.sum())).clamp(max=1.0)


def randomized(A: Tensor, kept: int) -> Tensor:
    """A / p with p ~ |A|, normalised by the sum."""
    return draw(A, normalised(A.abs().float(), kept), rescale=True)


def randomized_bisection(A: Tensor, kept: int) -> Tensor:
    """A / p with p = min(1, c |A|), c found by bisection until sum p is within 1e-3 of K."""
    s = A.abs().float()
    lower = float(kept / s.sum())
    upper = 2.0 * lower
    while (s * upper).clamp(max=1.0).sum() < kept:
        upper *= 2.0
    c = lower
    while abs(expected := float((s * c).clamp(max=1.0).sum()) - kept) > 1e-3 * kept:
        lower, upper = (c, upper) if expected < 0 else (lower, c)
        c = (lower + upper) / 2.0
    return draw(A, (s * c).clamp(max=1.0), rescale=True)


def magnitude(A: Tensor, kept: int) -> Tensor:
    """The K largest entries, by topk on the flat tensor."""
    flat = A.flatten()
    largest = flat.abs().topk(kept, sorted=False).indices
    return torch.zeros_like(flat).scatter_(0, largest, flat[largest]).view(A.shape)


def magnitude_prune(A: Tensor, kept: int) -> Tensor:
    """The K largest entries, by torch.nn.utils.prune.l1_unstructured."""
    module = nn.Module()
    module.weight = nn.Parameter(A, requires_grad=False)
    prune.l1_unstructured(module, "weight", A.numel() - kept)  # type: ignore[no-untyped-call]
    prune.remove(module, "weight")  # type: ignore[no-untyped-call]
    return module.weight.data


def magnitude_rows(A: Tensor, kept: int) -> Tensor:
    """The `kept` largest entries of each row, by topk along the row."""
    largest = A.abs().topk(kept, dim=1, sorted=False).indices
    return torch.zeros_like(A).scatter_(1, largest, A.gather(1, largest))


def largest_2_of_4(A: Tensor) -> Tensor:
    """The two largest of every four columns."""
    groups = A.view(-1, 4)
    largest = groups.abs().topk(2, dim=1, sorted=False).indices
    return torch.zeros_like(groups).scatter_(1, largest, groups.gather(1, largest)).view(A.shape)


def pack_bits(A: Tensor) -> Tensor:
    """A bit for each entry that is not zero, eight a byte."""
    weights = 2 ** torch.arange(8, dtype=torch.int32, device=A.device)
    return ((A != 0).view(-1, 8) * weights).sum(1).to(torch.uint8)


def masked_product(left: Tensor, right: Tensor, mask: Tensor, X: Tensor, ridge: float) -> Tensor:
    """left @ right + ridge X on a mask; the product is formed whole."""
    return torch.where(mask, torch.addmm(X, left, right, beta=ridge), 0.0)


def principal(A: Tensor, left: Tensor, right: Tensor, kept: int) -> Tensor:
    """A with p ~ |B|, normalised by the sum; B = left @ right is formed whole."""
    return draw(A, normalised((left @ right).abs(), kept), rescale=False)


def principal_svd(A: Tensor, rank: int, kept: int) -> Tensor:
    """As `principal`, the factors not given but found by torch.svd_lowrank."""
    U, S, V = torch.svd_lowrank(A.float(), q=rank)
    return principal(A, U * S, V.T, kept)
