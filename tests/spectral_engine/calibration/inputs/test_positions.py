"""Labels that are no masks, padding that is no data, and weights of positions."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import spectral_engine as se
from spectral_engine.calibration.batches import arguments_of
from tests.support.calibration_cases import seeded


class Tokens(nn.Module):
    """A model of token ids as transformers has them: by name, labels among the arguments."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.mix, self.flat, self.pooled = (
            nn.Embedding(50, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2),
        )  # fmt: skip

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, labels=None):
        x = self.embed(input_ids)
        if attention_mask is not None:
            x = x * (1 + attention_mask[..., None])
        x = self.flat(self.mix(x).flatten(0, 1)).reshape(x.shape)
        return SimpleNamespace(logits=self.pooled(x.mean(1)))


IDS = torch.arange(1, 25).reshape(4, 6)


def padded(lengths=(6, 4, 1, 2)) -> tuple[torch.Tensor, torch.Tensor]:
    mask = (torch.arange(6) < torch.tensor(lengths)[:, None]).long()
    return IDS * mask, mask


def arguments(*items):
    return arguments_of(Tokens(), items)


@given(st.integers(0, 2**24 - 1))
def test_labels_are_no_attention_mask(number):
    """Catches (input_ids, labels) batches whose labels are taken for a mask."""
    labels = torch.tensor([number >> i & 1 for i in range(24)]).reshape(4, 6)
    alike = [labels] if int((labels == 0).sum()) <= 1 else []  # that hides one position at most
    assert arguments(IDS, labels)[1:] == alike
    assert arguments(IDS, labels + 2)[1:] == []
    assert arguments(IDS, torch.zeros(4).long())[1:] == []


def test_masks_are_masks():
    """Catches a mask that is taken for labels, and labels behind one that are given."""
    ids, mask = padded()
    assert arguments(ids, mask)[1] is mask
    assert arguments(ids, mask.bool())[1].dtype == torch.bool
    assert len(arguments(ids, mask, torch.zeros(4).long())) == 2
    with pytest.raises(ValueError, match="item 2 of a batch may be 'token_type_ids' or labels"):
        arguments(ids, mask, mask)


def test_a_tensor_is_no_flag():
    """Catches labels that switch an option of a forward on."""

    class Net(nn.Linear):
        def forward(self, x, features=False, state=None):
            return super().forward(x)

    x, y = torch.ones(2, 8), torch.ones(2)
    assert len(arguments_of(Net(8, 8), (x, y))) == 1
    assert len(arguments_of(nn.GRU(8, 8), (x, y))) == 2


@pytest.mark.parametrize("form", ["dictionary", "tuple"])
@pytest.mark.parametrize("sequential", [True, False])
def test_hidden_positions_do_not_count(form, sequential):
    """Catches padding among the samples, also of inputs that come as (B T, n)."""
    ids, mask = padded()
    batch = (ids, mask) if form == "tuple" else {"input_ids": ids, "attention_mask": mask}
    report = se.prune(Tokens(), calibration=se.Calibration([batch], sequential=sequential))
    samples = {layer.name: layer.samples for layer in report.layers}
    assert samples == {"mix.weight": 13, "flat.weight": 13, "pooled.weight": 4}
    model = Tokens()
    moments = se.calibrate(model, [batch]).moments["mix.weight"]
    x = (2 * model.embed(ids))[mask.bool()].detach()
    torch.testing.assert_close(moments.second, x.mT @ x / 13)
    every = se.calibrate(model, [batch], positions="all").moments["mix.weight"]
    assert every.count == 24


class Attends(Tokens):
    """The same with a mask of four dimensions, which it does not look at."""

    def forward(self, input_ids, attention_mask=None):
        return super().forward(input_ids)


@pytest.mark.parametrize("form", ["booleans", "numbers", "added", "one row"])
def test_masks_of_four_dimensions_hide_positions(form):
    """Catches padding that counts where a mask says who sees whom, or is added to the scores."""
    ids, kept = padded()
    whole = kept[:, None, None, :].expand(4, 1, 6, 6).tril().bool()  # causal, too
    mask = {
        "booleans": whole, "numbers": whole.float(), "one row": kept[:, None, None, :],
        "added": torch.zeros(4, 1, 6, 6).masked_fill(~whole, -torch.inf),
    }[form]  # fmt: skip
    batches = [{"input_ids": ids, "attention_mask": mask}]
    second = se.calibrate(Attends(), batches).moments["mix.weight"].second
    x = Tokens().embed(ids[kept.bool()]).detach()
    torch.testing.assert_close(second, x.T @ x / len(x))


@pytest.mark.parametrize("batch_first", [True, False])
def test_padding_of_encoders(batch_first):
    """Catches a mask (B, T) laid over (T, B) positions, B = T among them."""
    layer = seeded(lambda: nn.TransformerEncoderLayer(8, 2, 8, batch_first=batch_first))
    model = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    x = torch.randn(4, 4, 8)
    hidden = torch.arange(4) >= torch.tensor([4, 1, 2, 3])[:, None]
    x[hidden if batch_first else hidden.mT] = 100.0
    found = se.calibrate(model, [{"src": x, "src_key_padding_mask": hidden}]).moments
    assert {moments.count for moments in found.values()} == {10}
    assert float(found["layers.0.self_attn.in_proj_weight[q]"].scale.max()) < 10


def test_decoders_have_masks_of_their_own():
    """Catches the encoder's mask over the decoder's positions, and over what attends across."""
    model = seeded(lambda: nn.Transformer(8, 2, 1, 1, 8, batch_first=True))
    hidden = [torch.arange(5) >= torch.tensor(lengths)[:, None] for lengths in ([5, 3], [2, 1])]
    batch = {"src": torch.randn(2, 5, 8), "tgt": torch.randn(2, 5, 8),
             "src_key_padding_mask": hidden[0], "tgt_key_padding_mask": hidden[1]}  # fmt: skip
    found = se.calibrate(model, [batch]).moments
    assert found["encoder.layers.0.linear1.weight"].count == 8
    assert found["decoder.layers.0.linear1.weight"].count == 3
    cross = "decoder.layers.0.multihead_attn.in_proj_weight"
    assert [found[f"{cross}[{part}]"].count for part in "qkv"] == [3, 8, 8]


@pytest.mark.parametrize("asymmetric", [False, True])
def test_positions_can_be_weighed(asymmetric):
    """Catches weights that are left out of the mean, the sums, or the dense model's moments."""
    weights = torch.rand(4, 6) * (torch.rand(4, 6) < 0.7)
    weights[0, 0] = 1.0
    model = Tokens()
    calibration = se.Calibration([IDS], positions=lambda batch: weights, asymmetric=asymmetric)
    [layer] = se.prune(model, targets="mix*", calibration=calibration).layers
    assert layer.samples == int(weights.count_nonzero())
    model = Tokens()
    found = se.calibrate(model, [IDS], positions=lambda batch: weights).moments["mix.weight"]
    x, w = model.embed(IDS).detach().flatten(0, 1), weights.flatten()[:, None]
    torch.testing.assert_close(found.second, x.mT @ (x * w) / w.sum())
    torch.testing.assert_close(found.mean.float(), (x * w).sum(0) / w.sum())


@pytest.mark.parametrize(
    ("positions", "error"),
    [
        (lambda batch: torch.ones(3), r"positions: expected a tensor of shape \(B, T\); got \(3,"),
        (lambda batch: -torch.ones(4, 6), "positions: expected finite weights"),
        (lambda batch: None, "positions: expected a tensor"),
    ],
)
def test_wrong_positions_are_named(positions, error):
    """Catches weights that fit nothing and are passed over."""
    with pytest.raises(ValueError, match=error):
        se.calibrate(Tokens(), [IDS], positions=positions)
    with pytest.raises(TypeError, match="positions: expected None"):
        se.Calibration([IDS], positions=3)
