"""Pruning at initialisation: weights are scored by their first gradients, or without any data.

snip: |g w| of one batch (Lee et al., arXiv 1810.02340). grasp: the weights whose loss would cost
most gradient flow, of ten images a class (Wang et al., arXiv 2002.07376, algorithm 1). synflow:
100 rounds of |R' w|, R the output for an input of ones under |w| (Tanaka et al., arXiv 2006.05467,
algorithm 1). All of them choose over all layers together; random chooses in each alone.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import spectral_engine as se
from bench.paper.runs.jobs import Settings
from bench.paper.training.data import Part
from bench.paper.training.networks import CLASSES

#: Images in the batch of SNIP, and of each class in that of GraSP.
SNIP_IMAGES, GRASP_IMAGES = 1024, 10
#: GraSP divides the logits by it.
TEMPERATURE = 200.0
SYNFLOW_ROUNDS = 100
AT_START = ("snip", "synflow", "grasp", "random at start")


def at_start(name: str, settings: Settings, model: nn.Module, seed: int, sparsity: float) -> None:
    """Prune a network before its training, in place, with masks."""
    part, prepare = settings.images().train, settings.chosen.prepare
    if name == "random at start":
        kept = chosen(model, sparsity, seed, anything, alone=True)
    elif name == "synflow":
        kept = synflow(model, prepare(part.images[:1]), sparsity, seed)
    elif name == "snip":
        loss = cross_entropy(model(prepare(part.images[:SNIP_IMAGES])), part.labels[:SNIP_IMAGES])
        loss.backward()  # type: ignore[no-untyped-call]
        kept = chosen(model, sparsity, seed, _saliency)
    else:
        images, labels = of_each_class(part, GRASP_IMAGES)
        flow_gradient(model, prepare(images), labels)
        kept = chosen(model, sparsity, seed, flow_kept)
    model.zero_grad()
    se.apply_masks(model, kept)


def of_each_class(part: Part, count: int) -> tuple[Tensor, Tensor]:
    """The first `count` images of each class, and their labels."""
    places = [torch.nonzero(part.labels == label)[:count, 0] for label in range(CLASSES)]
    rows = torch.cat(places)
    return part.images[rows], part.labels[rows]


def flow_gradient(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Put H g into each matrix's `grad`: g is the loss's gradient by the matrices, H its Hessian.

    Without the weight w the gradient flow |g|^2 changes by -2 w (H g), to first order.
    """
    matrices = [weight for weight in model.parameters() if weight.ndim >= 2]
    loss = cross_entropy(model(images) / TEMPERATURE, labels)
    gradients = torch.autograd.grad(loss, matrices, create_graph=True)
    half_flow = torch.stack([(one.detach() * one).sum() for one in gradients]).sum()
    for weight, found in zip(matrices, torch.autograd.grad(half_flow, matrices), strict=True):
        weight.grad = found


def synflow(model: nn.Module, like: Tensor, sparsity: float, seed: int) -> dict[str, Tensor]:
    """The masks of SynFlow, which takes no data and prunes in many small steps, so that no layer
    loses all its weights.
    """
    work = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in work.parameters():
            parameter.abs_()
    kept: dict[str, Tensor] = {}
    for index in range(1, SYNFLOW_ROUNDS + 1):
        work.zero_grad()
        work(torch.ones_like(like)).sum().backward()
        share = 1.0 - (1.0 - sparsity) ** (index / SYNFLOW_ROUNDS)
        kept = chosen(work, share, seed, _saliency)
        with torch.no_grad():
            for name, mask in kept.items():
                work.get_parameter(name).mul_(mask)
    return kept


def anything(_weight: Tensor, noise: Tensor) -> Tensor:
    """The score of random pruning."""
    return noise


def _saliency(weight: Tensor, noise: Tensor) -> Tensor:
    """|w g|, g being the gradient of the loss."""
    return flow_kept(weight, noise).abs()


def flow_kept(weight: Tensor, _noise: Tensor) -> Tensor:
    """w (H g), of what `flow_gradient` put there: half the weight's share of the gradient flow."""
    if weight.grad is None:
        raise RuntimeError("score: expected a gradient")
    return weight.grad * weight


def chosen(
    model: nn.Module,
    sparsity: float,
    seed: int,
    score: Callable[[Tensor, Tensor], Tensor],
    alone: bool = False,
) -> dict[str, Tensor]:
    """Masks that keep the largest scores over all weights, or in each alone."""
    generator = torch.Generator().manual_seed(seed)
    scores = {
        name: score(weight, torch.rand(weight.shape, generator=generator)).detach()
        for name, weight in model.named_parameters()
        if weight.ndim >= 2
    }
    every = torch.cat([found.flatten() for found in scores.values()])

    def threshold(found: Tensor) -> Tensor:
        count = found.numel() - round(sparsity * found.numel())
        return found.flatten().topk(max(1, count)).values[-1]

    overall = threshold(every)
    return {
        name: found >= (threshold(found) if alone else overall) for name, found in scores.items()
    }
