"""Budgets across layers: exact totals, floors, and the best allocation against brute force."""

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

import spectral_engine as se
from spectral_engine.cli import app
from spectral_engine.recipe.allocation import LayerCurve, Weight, allocate

KINDS = {"global": se.Global, "erk": se.ERK, "spectral": se.Spectral}


def curves(weights: Sequence[Any]) -> list[Any]:
    """The curves of some weights, called a, b, c and so on."""
    return [
        LayerCurve.of(Weight(chr(97 + i), lambda weight=weight: weight, weight.shape))
        for i, weight in enumerate(weights)
    ]


def kept_of(weights: Sequence[Any], found: dict[str, float]) -> list[int]:
    """Entries kept of each layer, as `sparsify` counts them."""
    return [
        weight.size - round(share * weight.size)
        for weight, share in zip(weights, found.values(), strict=True)
    ]


def lost(weight: Any, kept: int) -> float:
    """||S - A||_F^2 / ||A||_F^2 with the `kept` largest entries of A in S."""
    squares = np.sort(weight.astype(np.float64).ravel() ** 2)
    return float(squares[: weight.size - kept].sum() / squares.sum())


def unlike_layers(seed: int = 0) -> list[Any]:
    """Layers of unlike sizes, scales and tails."""
    rng = np.random.default_rng(seed)
    return [
        rng.standard_normal((20, 30)).astype(np.float32),
        (1e-3 * rng.standard_normal((50, 8))).astype(np.float32),
        (rng.standard_normal((6, 7)) ** 5).astype(np.float32),
        (10 * rng.standard_normal((40, 40)) * (rng.random((40, 40)) < 0.3)).astype(np.float32),
    ]


layers = st.lists(
    st.tuples(st.integers(1, 12), st.integers(1, 12), st.floats(-3, 3), st.floats(0, 3)),
    min_size=1, max_size=5,
)  # fmt: skip


@settings(max_examples=60)
@given(
    layers, st.floats(0, 0.99), st.floats(0, 1), st.sampled_from(sorted(KINDS)), st.integers(0, 99)
)
def test_totals_are_exact_and_floors_hold(
    shapes: list[tuple[int, int, float, float]], sparsity: float, share: float, kind: str, seed: int
) -> None:
    """A total off by rounding, a layer under its floor or with more entries than it has."""
    rng = np.random.default_rng(seed)
    weights = [
        (10**scale * rng.standard_normal((m, n)) * np.exp(tail * rng.standard_normal((m, n))))
        for m, n, scale, tail in shapes
    ]
    total = sum(weight.size for weight in weights)
    floor = share * (1 - sparsity)
    least = [max(1, math.ceil(floor * weight.size)) for weight in weights]
    budget = total - round(sparsity * total)
    if sum(least) > budget:
        with pytest.raises(ValueError, match="floor: layers would keep"):
            allocate(curves(weights), KINDS[kind](sparsity, floor=floor))
        return
    kept = kept_of(weights, allocate(curves(weights), KINDS[kind](sparsity, floor=floor)))
    assert sum(kept) == budget
    for count, lowest, weight in zip(kept, least, weights, strict=True):
        assert lowest <= count <= weight.size


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(3, 11), st.sampled_from([0.0, 0.3]))
def test_spectral_is_the_best_allocation(seed: int, budget: int, share: float) -> None:
    """A greedy choice that is not the least summed relative error of all allocations."""
    rng = np.random.default_rng(seed)
    # Magnitudes at least 7 % apart, so that each has a bin of its own.
    weights = [
        scale * (1.07 ** rng.choice(60, size, replace=False)).reshape(1, -1)
        for scale, size in ((1.0, 4), (30.0, 5), (0.01, 3))
    ]
    total = sum(weight.size for weight in weights)
    sparsity = 1 - budget / total
    floor = share * budget / total
    least = [max(1, math.ceil(floor * weight.size)) for weight in weights]
    found = allocate(curves(weights), se.Spectral(sparsity, floor=floor))
    error = sum(map(lost, weights, kept_of(weights, found)))
    every = itertools.product(
        *(range(low, weight.size + 1) for low, weight in zip(least, weights, strict=True))
    )
    best = min(sum(map(lost, weights, kept)) for kept in every if sum(kept) == budget)
    assert error <= best * (1 + 1e-3) + 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_sparser_in_all_is_sparser_in_each(kind: str) -> None:
    """A layer that gets entries back as the total shrinks."""
    found = curves(unlike_layers())
    before = dict.fromkeys("abcd", 0.0)
    for sparsity in np.linspace(0.05, 0.98, 32):
        after = allocate(found, KINDS[kind](float(sparsity), floor=0.0))
        for name, share in after.items():
            # ERK rounds its shares: one entry up or down.
            slack = 1.0 / 42 if kind == "erk" else 1e-12
            assert share >= before[name] - slack
        before = after


def test_global_is_one_threshold() -> None:
    """Layers compared by something else than their entries' magnitudes."""
    weights = unlike_layers()
    flat = np.sort(np.abs(np.concatenate([weight.ravel() for weight in weights])))[::-1]
    for sparsity in (0.5, 0.8, 0.95):
        found = allocate(curves(weights), se.Global(sparsity, floor=0.0))
        threshold = flat[sum(kept_of(weights, found))]
        for weight, kept in zip(weights, kept_of(weights, found), strict=True):
            # To a bin of the histogram, 1/32 wide; one entry is the least.
            assert kept <= max(1, (np.abs(weight) >= threshold * (1 - 1 / 32)).sum())
            assert kept >= (np.abs(weight) > threshold * (1 + 1 / 32)).sum()


def test_erk_is_in_proportion_to_the_dimensions() -> None:
    """The formula of Erdos-Renyi-kernel without the kernel, or densities over 1."""
    rng = np.random.default_rng(0)
    shapes = [(64, 16, 3, 3), (128, 64, 3, 3), (10, 512), (4, 8)]
    weights = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    found = allocate(curves(weights), se.ERK(0.97, floor=0.0))
    density = [1 - share for share in found.values()]
    raw = [sum(shape) / math.prod(shape) for shape in shapes]
    assert density[3] == 1.0
    for i in (0, 1):
        assert density[i] / density[2] == pytest.approx(raw[i] / raw[2], rel=2e-2)


@pytest.mark.parametrize("max_error", [0.0, 0.01, 0.1, 0.5, 0.95])
def test_error_target_is_met_by_every_layer(max_error: float) -> None:
    """A layer over the error, or one that could be much sparser under it."""
    weights = unlike_layers()
    found = allocate(curves(weights), se.MaxError(max_error))
    for weight, kept in zip(weights, kept_of(weights, found), strict=True):
        assert math.sqrt(lost(weight, kept)) <= max_error
        fewer = kept - 1 - math.ceil(4e-3 * weight.size)
        assert kept == 1 or fewer < 1 or math.sqrt(lost(weight, fewer)) > max_error


def test_error_target_is_met_by_all_together() -> None:
    """The root mean square of the errors over the target, or no better than layer by layer."""
    weights = unlike_layers()
    each = kept_of(weights, allocate(curves(weights), se.MaxError(0.3)))
    found = kept_of(weights, allocate(curves(weights), se.MaxError(0.3, together=True)))
    errors = [lost(weight, kept) for weight, kept in zip(weights, found, strict=True)]
    assert 0.29 < math.sqrt(sum(errors) / len(errors)) <= 0.3
    assert sum(found) < sum(each)


def network() -> nn.Sequential:
    """Layers of unlike scale, by the manual seed 0."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(32, 24), nn.Linear(24, 8))
    with torch.no_grad():
        model[2].weight.mul_(0.01)
    return model


@pytest.mark.parametrize("kind", ["uniform", *KINDS])
def test_prune_reaches_the_total(kind: str) -> None:
    """A budget that prune does not follow, or rows that do not say each layer's own target."""
    model = network()
    budget = {"uniform": se.Uniform, **KINDS}[kind](0.8)
    report = se.prune(model, se.Recipe(budget=budget))
    kept = [int(torch.count_nonzero(model[i].weight)) for i in (0, 2, 3)]
    total = sum(model[i].weight.numel() for i in (0, 2, 3))
    assert abs(sum(kept) - (total - round(0.8 * total))) <= (1 if kind == "uniform" else 0)
    for row, count in zip(report.layers, kept, strict=True):
        assert row.requested is not None
        assert row.size - round(row.requested * row.size) == count
        assert count >= 0.02 * row.size  # the default floor
    assert report.recipes[0].budget == budget
    assert len({row.requested for row in report.layers}) == (1 if kind == "uniform" else 3)


def test_prune_to_an_error() -> None:
    """A bound on the error that is not the error that the report measures."""
    report = se.prune(network(), se.Recipe(budget=se.MaxError(0.2)), measure=True)
    for row in report.layers:
        assert row.frobenius is not None
        assert 0.15 < row.frobenius <= 0.2
    assert report.requested == pytest.approx(report.sparsity)


def test_one_matrix_to_an_error() -> None:
    """A bound on the error that `sparsify` of one matrix passes over."""
    weight = unlike_layers()[2]
    out = se.sparsify(weight, se.Recipe(budget=se.MaxError(0.2)))
    assert 0.15 < out.report.errors.frobenius <= 0.2


@pytest.mark.parametrize("method", [se.Magnitude(), se.Randomized(), se.Principal(), se.Aligned()])
def test_prune_by_pattern(method: se.Method) -> None:
    """A group of four, in a convolution too, with more than two entries, or sparsity but 1/2."""
    model = network()
    report = se.prune(model, se.Recipe(method, budget=se.Pattern("2:4")), seed=1)
    assert report.requested == 0.5
    for i in (0, 2, 3):
        groups = model[i].weight.detach().reshape(-1, 4)
        assert int((groups != 0).sum(1).max()) == 2
    blocks = se.Recipe(budget=se.Pattern("4x4", 0.5))
    for i, n in ((0, 36), (2, 32), (3, 24)):
        kept = se.sparsify(model[i].weight.reshape(-1, n), blocks).weight != 0
        kept = kept.reshape(-1, 4, n // 4, 4).any(3).any(1)
        assert int(kept.sum()) <= -(-kept.numel() // 2)


def test_blocks_share_a_budget() -> None:
    """Blocks whose layers all get the same share, whatever the budget within the pattern says."""
    model = network()
    recipe = se.Recipe(budget=se.Pattern("4x4", shared=se.ERK(0.7)))
    report = se.prune(model, recipe)
    assert len({row.requested for row in report.layers}) == 3
    assert report.sparsity == pytest.approx(0.7, abs=0.03)


def test_several_recipes() -> None:
    """A weight pruned by a later recipe that selects it too, a budget shared across recipes, or a
    weight that no recipe selects and that goes unlisted."""
    model = network()
    linear = se.Recipe(budget=se.Global(0.8), select=se.Select("Linear"))
    rest = se.Recipe(se.Randomized(), select=se.Select(ignore="3"))
    report = se.prune(model, [linear, rest], 0.6)
    rows = {row.name: row for row in report.layers}
    assert {name: row.recipe for name, row in rows.items()} == {
        "0.weight": 1, "2.weight": 0, "3.weight": 0,
    }  # fmt: skip
    alone = network()
    se.prune(alone, linear, 0.6)
    assert torch.equal(alone[2].weight, model[2].weight)
    assert torch.equal(alone[3].weight, model[3].weight)
    dense = network()
    report = se.prune(dense, [se.Recipe(select=se.Select("0")), se.Recipe(select=se.Select("2"))])
    assert [(one.name, one.reason) for one in report.skipped] == [("3.weight", "not among targets")]
    report = se.prune(network(), [linear, se.Recipe(select=se.Select("nope"))], ignore="3")
    assert report.unmatched == ["recipe 2: targets 'nope'"]
    assert [row.name for row in report.layers] == ["2.weight"]


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (se.ERK(0.9, floor=0.5), "floor: layers would keep"),
        (se.Pattern("5:16"), "model: 0.weight: pattern: expected"),
        (se.Pattern("16x16"), "model: 0.weight: pattern: expected rows"),
    ],
)
def test_refusals_leave_the_model_untouched(budget: se.Budget, message: str) -> None:
    """A budget that changes a layer before it is refused."""
    model = network()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(ValueError, match=message):
        se.prune(model, se.Recipe(budget=budget))
    for old, new in zip(before, model.parameters(), strict=True):
        assert torch.equal(old, new)


def test_command_line(tmp_path: Path) -> None:
    """A recipe of the command that does not reach the kernels, or differs from `prune` in them."""
    model = network()
    source, target = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file(dict(model.state_dict()), source)

    def run(recipe: se.Recipe, *options: str) -> dict[str, Any]:
        recipe.save(tmp_path / "recipe.toml", force=True)
        command = ["prune", str(source), "-o", str(target), "--force", "--json"]
        command += ["--recipe", str(tmp_path / "recipe.toml"), *options]
        result = CliRunner().invoke(app, command, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        report: dict[str, Any] = json.loads(result.stdout)
        return report

    report = run(se.Recipe(budget=se.Spectral()), "--sparsity", "0.8")
    expected = se.prune(model, se.Recipe(budget=se.Spectral(0.8)))
    assert [row["requested"] for row in report["layers"]] == [
        row.requested for row in expected.layers
    ]
    for name, tensor in load_file(target).items():
        assert torch.equal(tensor, model.state_dict()[name])
    assert run(se.Recipe(budget=se.Pattern("2:4")))["sparsity"] == 0.5
    bounded = run(se.Recipe(budget=se.MaxError(0.1)), "--measure")
    assert bounded["layers"][0]["frobenius"] <= 0.1
    drawn = se.Recipe(se.Randomized(law="hybrid", law_parameter=0.3, rescale=False))
    assert run(drawn)["recipes"] == [drawn.to_dict()]
