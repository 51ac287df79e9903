"""Kinds of batches, and models that are wrapped or compiled."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, TensorDataset

import spectral_engine as se
from spectral_engine.calibration.batches import copied
from tests.support.calibration_cases import (
    Mlp,
    batches,
    seeded,
)


def test_kinds_of_batches():
    """Catches labels that are given to the model, and dictionaries that are not unpacked."""
    data = batches()
    x = torch.cat(data)
    loader = DataLoader(TensorDataset(x, torch.zeros(len(x))), batch_size=16)
    kinds = {
        "tensors": data,
        "one tensor": x,
        "tuples": tuple((batch, torch.zeros(len(batch))) for batch in data),
        "loader": loader,
        "dictionaries": [{"x": batch} for batch in data],
        "one dictionary": {"x": x},
    }
    results = {}
    for name, calibration in kinds.items():
        model = Mlp()
        se.prune(model, se.Recipe(refit=se.LeastSquares()), 0.5, calibration=calibration)
        results[name] = model.third.weight.detach()
    own = Mlp()
    images = se.Calibration(
        [{"image": batch} for batch in data], forward=lambda model, batch: model(batch["image"])
    )
    se.prune(own, se.Recipe(refit=se.LeastSquares()), 0.5, calibration=images)
    results["forward"] = own.third.weight.detach()
    for name, found in results.items():
        assert torch.allclose(found, results["tensors"], atol=1e-4), name


def test_a_packed_sequence_moves_whole():
    """Catches a packed batch taken apart as a tuple, with its lengths on the device."""
    packed = pack_sequence([torch.ones(3, 2), torch.ones(2, 2)])
    there = copied({"input": packed}, torch.device("meta"))["input"]
    assert there.data.is_meta
    assert there.batch_sizes.device.type == "cpu"


@pytest.mark.parametrize("compiled", [torch.compile, lambda model, **options: model])
def test_a_compiled_model_that_has_run_is_seen(compiled):
    """Catches a graph compiled before the hooks were there, which calls none of them."""
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)))
    batches = [torch.randn(6, 8)]
    wrapped = compiled(model, backend="eager")
    with torch.no_grad():
        wrapped(batches[0])
    assert not se.calibrate(wrapped, batches).unseen
    assert len(se.calibrate(wrapped, batches).moments) == 2


def test_an_encoder_with_a_padding_mask():
    """Catches the fused path of encoder layers: nested tensors, or modules that are not called."""
    layer = seeded(lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True))
    model = nn.TransformerEncoder(layer, 2)
    padding = torch.zeros(4, 5, dtype=torch.bool)
    padding[0, 3:] = True
    batches = [{"src": torch.randn(4, 5, 16), "src_key_padding_mask": padding}]
    found = se.calibrate(model, batches)
    assert all("out_proj" in name for name in found.unseen)  # whose inputs attention never shows
    assert all(moments.count == 18 for moments in found.moments.values())  # 2 are padding
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        torch.optim.swa_utils.AveragedModel,
        lambda model: torch.compile(model, backend="eager"),
    ],
)
def test_labels_are_left_out_for_wrapped_models(wrap):
    """Catches a wrapper that takes any arguments, and hands the labels to the model."""
    model = wrap(seeded(lambda: nn.Sequential(nn.Linear(8, 4))))
    batches = [(torch.randn(6, 8), torch.zeros(6))]
    assert len(se.calibrate(model, batches).moments) == 1
