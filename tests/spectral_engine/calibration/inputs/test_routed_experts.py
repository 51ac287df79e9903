"""Experts held as one tensor: each is calibrated on the tokens that are sent to it."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import spectral_engine as se
from spectral_engine.calibration.routed.experts import by_expert, is_routed, routed

COUNT, WIDTH, INNER, SENT = 3, 8, 6, 2


class ToyExperts(nn.Module):
    """As transformers 5 has them, also (experts, in, out) and with biases."""

    has_gate, has_post_expert_norm = True, False

    def __init__(self, transposed: bool = False, bias: bool = False) -> None:
        super().__init__()
        self.is_transposed, self.has_bias, self.act_fn = transposed, bias, nn.SiLU()
        into, out_of = (2 * INNER, WIDTH), (WIDTH, INNER)
        shapes = [into[::-1], out_of[::-1]] if transposed else [into, out_of]
        self.gate_up_proj, self.down_proj = (
            nn.Parameter(torch.randn(COUNT, *shape)) for shape in shapes
        )
        if bias:
            self.gate_up_proj_bias = nn.Parameter(torch.randn(COUNT, 2 * INNER))
        self.seen: list[list[torch.Tensor]] = [[] for _ in range(COUNT)]

    def _apply_gate(self, out):
        gate, up = out.chunk(2, -1)
        return self.act_fn(gate) * up

    def forward(self, hidden_states, top_k_index, top_k_weights):
        out = torch.zeros_like(hidden_states)
        for expert in range(COUNT):
            tokens, places = torch.where(top_k_index == expert)
            x, y = hidden_states[tokens], (self.gate_up_proj[expert], self.down_proj[expert])
            into, out_of = (w.T for w in y) if self.is_transposed else y
            bias = self.gate_up_proj_bias[expert] if self.has_bias else None
            inner = self._apply_gate(functional.linear(x, into, bias))
            self.seen[expert].append(inner.detach())
            y = functional.linear(inner, out_of) * top_k_weights[tokens, places, None]
            out.index_add_(0, tokens, y)
        return out


class Mixture(nn.Module):
    """Linear, router and experts; expert `never` is sent nothing."""

    def __init__(self, never: int | None = None, **options: bool) -> None:
        super().__init__()
        self.first, self.router = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, COUNT)
        self.experts, self.never = ToyExperts(**options), never

    def forward(self, x):
        hidden = self.first(x)
        logits = self.router(hidden)
        if self.never is not None:
            logits[:, self.never] = -torch.inf
        weights, chosen = logits.softmax(-1).topk(SENT, -1)
        return hidden + self.experts(hidden, chosen, weights)


def mixture(never: int | None = None, **options: bool) -> tuple[Mixture, list[torch.Tensor]]:
    torch.manual_seed(0)
    return Mixture(never, **options).eval(), [torch.randn(40, WIDTH) for _ in range(3)]


@pytest.mark.parametrize("options", [{}, {"transposed": True}, {"bias": True}], ids=str)
def test_moments_are_those_of_the_tokens_sent(options):
    """Catches tokens of another expert, a gate left out, and a weight read the other way round."""
    model, batches = mixture(**options)
    moments = se.calibrate(model, batches).moments
    seen = copy.deepcopy(model)
    seen.experts.seen = [[] for _ in range(COUNT)]
    for batch in batches:
        seen(batch)
    for expert, parts in enumerate(seen.experts.seen):
        x = torch.cat(parts).double()
        expected, found = x.T @ x, moments["experts.down_proj"].second[expert].double()
        scale = expected.diagonal().sum() / found.diagonal().sum()  # few tokens: smaller, all alike
        assert torch.allclose(scale * found, expected, rtol=1e-4, atol=1e-4)
    assert moments["experts.gate_up_proj"].second.shape == (COUNT, WIDTH, WIDTH)


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("recipe", ["wanda", "least-squares"])
def test_experts_are_pruned_by_what_they_see(recipe, sequential):
    """Catches experts that stay uncalibrated, and replays that count our calls of the gate."""
    model, batches = mixture()
    calibration = se.Calibration(batches, sequential=sequential)
    rows = se.prune(
        model, recipe, 0.5, calibration=calibration, targets="*experts*", progress=False
    ).layers
    assert len(rows) == 2
    assert all(row.uncalibrated is None and row.samples for row in rows)


def test_least_squares_fits_each_expert_to_its_tokens():
    """Catches moments that are one expert's for all: fitted on its own tokens each is no worse."""
    model, batches = mixture()
    moments = se.calibrate(model, batches).moments["experts.gate_up_proj"]
    dense = model.experts.gate_up_proj.detach().clone()
    alone = copy.deepcopy(model)
    for one, name in ((alone, "wanda"), (model, "least-squares")):
        se.prune(one, name, 0.5, calibration=batches, targets="*gate_up*", progress=False)
    for expert in range(COUNT):
        H = moments.second[expert]
        errors = [
            float(torch.trace((W - dense)[expert] @ H @ (W - dense)[expert].T))
            for W in (alone.experts.gate_up_proj.detach(), model.experts.gate_up_proj.detach())
        ]
        assert errors[1] < errors[0]


def test_an_expert_without_tokens_is_pruned_by_magnitude():
    """Catches an expert that is zeroed since its inputs, which were none, have no magnitude."""
    model, batches = mixture(never=1)
    dense = model.experts.down_proj.detach().clone()
    se.prune(model, "least-squares", 0.5, calibration=batches, targets="*down*", progress=False)
    kept = model.experts.down_proj.detach()
    expected = se.sparsify(dense[1], se.Recipe(budget=se.Uniform(group="row")), 0.5).weight
    assert torch.equal(kept[1], expected)


@settings(max_examples=30)
@given(st.integers(0, 99), st.integers(0, 20), st.integers(1, 5))
def test_rows_are_parted_by_expert(seed, tokens, count):
    """Catches a row that is lost, doubled or given to another expert."""
    random = np.random.default_rng(seed)
    hidden = torch.from_numpy(random.standard_normal((tokens, 3)))
    experts = torch.from_numpy(random.integers(0, count + 1, (tokens, 2)))
    rows = routed(hidden, experts, count)
    sums = torch.zeros(count, 3, 3, dtype=torch.float64)
    for part in by_expert(rows, count):
        sums += part.mT @ part
    for expert in range(count):
        x = hidden[torch.where(experts == expert)[0]]
        assert torch.allclose(sums[expert], x.T @ x)


def test_other_experts_are_left_uncalibrated():
    """Catches a module taken for one of transformers' that is called otherwise."""
    model, batches = mixture()
    assert is_routed(model.experts)
    model.experts.has_post_expert_norm = True
    assert not is_routed(model.experts)
    rows = se.prune(model, "wanda", 0.5, calibration=batches, progress=False).layers
    assert sum("not known where" in (row.uncalibrated or "") for row in rows) == 2
