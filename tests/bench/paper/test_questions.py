"""What the open questions need beside the paper's tasks: other losses, early weights, thinning."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spectral_engine as se
from bench.paper.runs import dense
from bench.paper.runs.jobs import Settings
from bench.paper.tasks import headtohead, methods, oneshot, rewinding
from bench.paper.training import loop as training
from bench.paper.training import networks, objectives
from bench.paper.training.data import Part

# Losses


def test_smoothed_labels() -> None:
    """Catches a share that is lost, or given to the wrong classes."""
    part = Part(torch.zeros(2, 28, 28, dtype=torch.uint8), torch.tensor([3, 0]))
    found = objectives.smoothed(part)
    assert torch.allclose(found.sum(1), torch.ones(2))
    assert found[0, 3] == pytest.approx(0.91)
    assert found[0, 0] == found[1, 9] == pytest.approx(0.01)


def test_variance_explained() -> None:
    """Catches an autoencoder judged by its loss, or by accuracy: its input explains all, the mean
    image nothing.
    """
    images = torch.randint(0, 256, (40, 28, 28), dtype=torch.uint8)
    part = Part(images, torch.zeros(40, dtype=torch.int64))
    mean = objectives.pixels(part).mean(0)

    class Mean(nn.Module):
        def forward(self, rows: Tensor) -> Tensor:
            return mean.expand(len(rows), -1)

    from_input = objectives.explained(nn.Flatten(), part, training_input)
    assert from_input == pytest.approx(1.0, abs=1e-6)
    assert objectives.explained(Mean(), part, training_input) == pytest.approx(0.0, abs=1e-6)


def training_input(images: Tensor) -> Tensor:
    return objectives.normalise(images)


def test_a_loss_is_what_is_learnt(make: Callable[..., Settings]) -> None:
    """Catches an objective that changes the name in the cache only: cross entropy all the same."""
    settings = make(network="mlp", seeds=1)
    wanted: list[torch.Size] = []

    def nothing(outputs: Tensor, targets: Tensor) -> Tensor:
        wanted.append(targets.shape)
        return 0.0 * outputs.sum()

    def half(*_: Any, **__: Any) -> float:
        return 0.5

    recipe = replace(settings.recipe, decay=0.0)
    found = dense.trained(
        settings,
        0,
        recipe,
        None,
        "nothing",
        objectives.Objective(nothing, objectives.classes, half),
    )
    before = dense.build(settings, 0).state_dict()
    assert all(torch.equal(value, before[name]) for name, value in found.model.state_dict().items())
    assert wanted[0] == (128, 10)
    assert (found.test, found.history[0]["validation"]) == (0.5, 0.5)


# Rewinding


def test_early_weights_lie_on_the_way_to_the_dense_network(make: Callable[..., Settings]) -> None:
    """Catches weights of another seed, other batches, or a schedule that ends with them."""
    settings = replace(make(seeds=1, epochs=3, subset=200), quick=False)
    early = rewinding.begun(settings, 0, rewinding.rewound(1))
    folder = settings.folder("early", settings.recipe, 0, 1)
    rest = training.Training(
        model=dense.build(settings, 0), data=settings.images(), prepare=settings.chosen.prepare,
        segments=[settings.recipe], seed=0, path=folder / "run.safetensors",
    )  # fmt: skip
    on = rest.run().model.state_dict()
    assert len(rest.history) == 3
    for name, value in dense.trained(settings, 0).model.state_dict().items():
        assert torch.equal(on[name], value)
        assert not torch.equal(early.get_parameter(name), value)


def test_every_start_has_the_mask_of_the_dense_network(
    make: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a mask from the rewound weights themselves, and weights that are not rewound."""
    settings, seen = make(seeds=1, subset=300), []

    def keep(_settings: Settings, model: nn.Module, *_: Any) -> float:
        seen.append(model)
        return 0.5

    monkeypatch.setattr(headtohead, "train", keep)
    for start in (rewinding.rewound(0), rewinding.rewound(1), rewinding.NEW):
        rewinding.one(settings, 0, start, 0.9)
    expected = dense.trained(settings, 0).model
    se.prune(expected, "magnitude", 0.9)
    name, initial = "fc1.weight", dense.build(settings, 0)
    zeros = [model.get_parameter(name) == 0 for model in (expected, *seen)]
    assert all(torch.equal(zeros[0], other) for other in zeros[1:])
    weights = [model.get_parameter(name)[~zeros[0]] for model in (initial, *seen)]
    assert torch.equal(weights[0], weights[1])
    assert not any(torch.equal(weights[0], other) for other in weights[2:])


# Networks that are dear


def test_a_thinned_network_is_judged_by_the_first_images(
    make: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches rows judged by all images beside a heading that says few, or by other ones."""
    few = replace(networks.NETWORKS["mlp"], judges=50)
    monkeypatch.setitem(networks.NETWORKS, "mlp", few)
    settings = make(network="mlp", seeds=1)
    model, test = dense.trained(settings, 0).model, settings.images().test
    first = Part(test.images[:50], test.labels[:50])
    expected = training.accuracy(model, first, settings.chosen.prepare)
    assert oneshot.judged(settings, model) == expected != dense.tested(settings, model)
    rows = [{"variant": "", "setting": "magnitude", "sparsity": 0.5, "test": 0.5}]
    assert "50 test images" in oneshot.accuracies(settings, rows).title
    assert len(oneshot.chosen(replace(settings, quick=False))) == len(methods.FEW)


def test_vgg_computes_in_bfloat16_from_float32_weights() -> None:
    """Catches weights or logits rounded to 8 bits, and layers that stay in float32."""
    model = networks.vgg19(0.0625, norm=True)
    seen: dict[int, torch.dtype] = {}
    for place, layer in enumerate(model):
        layer.register_forward_hook(
            lambda _m, _i, out, place=place: seen.update({place: out.dtype})
        )
    logits = model(torch.rand(4, 3, 32, 32))
    logits.sum().backward()
    assert seen[0] == seen[len(model) - 3] == torch.bfloat16
    assert logits.dtype == torch.float32
    kinds = {one.dtype for w in model.parameters() for one in (w, w.grad) if one is not None}
    assert kinds == {torch.float32}
