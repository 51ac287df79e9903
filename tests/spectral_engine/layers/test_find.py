"""Which weights are found, under which names, and what is refused before anything is changed."""

import pytest
import torch
from spectral_kernels import stream_id
from torch import nn

import spectral_engine as se
from spectral_engine.layers.find import find_layers
from spectral_engine.layers.ready import require_ready
from spectral_engine.layers.selector import Selector, matches


def found(model: nn.Module, targets=None, ignore=None):
    return find_layers(model, Selector.of(targets, ignore))


class TiedLSTM(nn.Module):
    """A recurrent weight of two modules, and an embedding tied to a head."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(9, 4)
        self.one = nn.LSTM(4, 4)
        self.two = nn.LSTM(4, 4)
        self.head = nn.Linear(4, 9, bias=False)
        self.two.weight_hh_l0 = self.one.weight_hh_l0
        self.head.weight = self.wte.weight


def test_tied_parts_come_once():
    """Catches the gates of a shared weight pruned twice, or listed under one name only."""
    model = TiedLSTM()
    layers, skipped = found(model, targets="*")
    assert skipped == []
    names = [layer.name for layer in layers]
    assert len(set(names)) == len(names) == 1 + 3 * 4
    [shared] = [layer for layer in layers if layer.name == "one.weight_hh_l0[cell]"]
    assert shared.shared_with == ("two.weight_hh_l0[cell]",)
    assert shared.owners == ((model.one, "weight_hh_l0"), (model.two, "weight_hh_l0"))
    assert (shared.module, shared.local_name) == (model.one, "weight_hh_l0")
    [head] = [layer for layer in layers if layer.name == "head.weight"]
    assert (head.module, head.shared_with) == (model.head, ("wte.weight",))
    kept = found(model, targets="*", ignore="two.weight_hh_l0[cell]")[1]
    assert [one.name for one in kept] == ["one.weight_hh_l0[cell]"]
    assert [(one.name, one.reason) for one in found(model)[1]] == [
        ("head.weight", "an embedding; name it in targets to prune it")
    ]


def test_output_heads_are_pruned_unless_ignored():
    """Catches a head that is left dense without a word."""
    model = nn.ModuleDict({"body": nn.Linear(4, 4), "lm_head": nn.Linear(4, 9)})
    assert [layer.name for layer in found(model)[0]] == ["body.weight", "lm_head.weight"]
    layers, skipped = found(model, ignore="lm_head")
    assert [layer.name for layer in layers] == ["body.weight"]
    assert [(one.name, one.reason) for one in skipped] == [
        ("lm_head.weight", "ignored by 'lm_head'")
    ]


def test_a_name_with_brackets_matches_itself():
    """Catches the name of a part, copied from a report, taken for a set of characters."""
    assert matches("x.weight_ih_l0[cell]", ["x.weight_ih_l0[cell]"])
    assert not matches("x.weight_ih_l0[cell]", ["x.weight_ih_l0[input]"])
    assert matches("x.weight_ih_l0[cell]", ["x.weight_ih_l0c"])


def test_matrices_share_memory_and_are_detached():
    """Catches a copy of every weight where none is needed, and a graph that is kept alive."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Conv2d(4, 6, 3, groups=2), nn.LSTM(4, 4))
    for layer in found(model)[0]:
        matrices = layer.matrices()
        assert matrices.untyped_storage().data_ptr() == layer.parameter.untyped_storage().data_ptr()
        assert not matrices.requires_grad


def test_draws_of_parts_follow_their_names():
    """Catches gates that share their draws, and draws that depend on what else is pruned."""
    torch.manual_seed(0)
    lstm = nn.LSTM(6, 6)
    for name in ("weight_ih_l0", "weight_hh_l0"):
        getattr(lstm, name).data.fill_(1.0)
    before = lstm.weight_hh_l0.detach().clone()
    se.prune(lstm, "randomized", 0.5, seed=2, targets="weight_hh_l0[forget]")
    expected = se.sparsify(
        before[6:12], "randomized", 0.5, seed=2, stream=stream_id("weight_hh_l0[forget]")
    )
    assert torch.equal(lstm.weight_hh_l0[6:12], expected.weight)
    assert torch.equal(lstm.weight_hh_l0[:6], before[:6])
    parts = {tuple(part.flatten().tolist()) for part in pruned_parts(lstm)}
    assert len(parts) == 8


def pruned_parts(lstm):
    se.finalize(lstm)
    for parameter in (lstm.weight_ih_l0, lstm.weight_hh_l0):
        parameter.data.fill_(1.0)
    se.prune(lstm, "randomized", 0.5)
    return [*lstm.weight_ih_l0.detach().chunk(4), *lstm.weight_hh_l0.detach().chunk(4)]


@pytest.mark.parametrize("part", ["weight_hh_l0", "weight_ih_l0"])
def test_a_bad_part_leaves_the_model_untouched(part):
    """Catches NaN in the last gate found only after the first ones were pruned."""
    lstm = nn.LSTM(4, 4)
    getattr(lstm, part).data[-1, -1] = float("nan")
    before = lstm.weight_ih_l0.detach().clone()
    with pytest.raises(ValueError, match=rf"model: {part}\[output\] holds NaN"):
        se.prune(lstm)
    assert torch.equal(lstm.weight_ih_l0.nan_to_num(), before.nan_to_num())
    assert se.masks(lstm) == {}


def test_lazy_and_meta_layers_of_every_kind_are_refused():
    """Catches an error from deep inside where a weight has no shape, or no values, yet."""
    split = se.Recipe(select=se.Select(split={"weight": ("a", "b")}))
    with pytest.raises(ValueError, match=r"model: weight has no shape yet"):
        se.prune(nn.LazyConvTranspose2d(4, 3), split)
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.LSTM(4, 4), nn.Bilinear(2, 3, 4))
    for targets, name in (("0", "0.weight"), ("1", r"1.weight_ih_l0\[input\]"), ("2", "2.weight")):
        with pytest.raises(ValueError, match=f"model: {name} is on the meta device"):
            se.prune(model, targets=targets)


def test_zeros_of_an_earlier_pruning_are_no_error():
    """Catches a second pruning that refuses what a mask has emptied, or a refusal that a mask
    on another weight switches off."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(40, 40))
    se.prune(model, sparsity=0.9)
    assert int((model[0].weight != 0).sum()) == 1
    se.apply_masks(model, {"0.weight": torch.zeros(2, 2, dtype=torch.bool)})
    se.prune(model, sparsity=0.95)
    assert int((model[1].weight != 0).sum()) == 80
    nn.init.zeros_(model[1].weight)
    se.finalize(model)
    layers, _ = found(model)
    with pytest.raises(ValueError, match=r"model: 0.weight is all zeros"):
        require_ready(layers)
    with pytest.raises(ValueError, match=r"model: 1.weight is all zeros"):
        require_ready(layers, {id(model[0].weight)})
