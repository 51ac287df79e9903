"""Tables of embeddings that are looked up in their files."""

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

import spectral_engine as se
import spectral_engine.streaming.folder
from spectral_engine.checkpoints import open_checkpoint
from spectral_engine.checkpoints.formats.safetensors_format import SafetensorsFile
from spectral_engine.streaming.files.lookup import is_table, looked_up
from spectral_engine.streaming.files.weights import FileWeights
from spectral_engine.streaming.pieces import Piece
from tests.support.streaming.block_models import (
    Decoder,
    batches,
    made,
    without_weights,
    write_folder,
)


@given(
    ids=st.lists(st.integers(0, 6), min_size=1, max_size=12),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
    kind=st.sampled_from([torch.int64, torch.int32]),
    rows=st.sampled_from([1, 2, 3]),
)
def test_rows_are_those_of_the_embedding(ids, dtype, kind, rows):
    """Catches rows of other tokens, another dtype, shape or layout, and a padding row that is not
    the file's."""
    values = torch.randn(7, 5).to(dtype)
    ids = torch.tensor(ids * rows, dtype=kind).reshape(rows, -1)
    with tempfile.TemporaryDirectory() as folder:
        save_file({"table.weight": values}, Path(folder) / "model.safetensors")
        with torch.device("meta"):
            model = nn.ModuleDict({"table": nn.Embedding(7, 5, padding_idx=2)})
        piece = Piece("table", model["table"], False)
        with open_checkpoint(folder) as checkpoint:
            weights = FileWeights(checkpoint, model)
            assert is_table(piece, weights)
            with torch.no_grad(), looked_up([piece], weights):
                found = model["table"](ids)
                with pytest.raises(IndexError, match="out of range"):
                    model["table"](ids + 7)
            wanted = nn.functional.embedding(ids, values, padding_idx=2)
    assert found.dtype == wanted.dtype
    assert found.stride() == wanted.stride()
    assert torch.equal(found, wanted)


def test_a_table_that_is_not_pruned_is_never_read_whole(tmp_path, monkeypatch):
    """Catches a table, which can take more than a block, in memory for the tokens of a batch."""
    monkeypatch.setattr(
        spectral_engine.streaming.folder,
        "model_of_folder",
        lambda *_, **__: (without_weights(Decoder), "Tiny"),
    )
    source = write_folder(made(Decoder), tmp_path / "in")
    seen: list[str] = []
    own = SafetensorsFile.read

    def noted(self, name):
        seen.append(name)
        return own(self, name)

    monkeypatch.setattr(SafetensorsFile, "read", noted)
    for targets, whole in ((None, False), (["embed", "blocks.*"], True)):
        seen.clear()
        se.prune_file(
            source, tmp_path / f"out-{whole}", "wanda", 0.5, calibration=batches(), targets=targets
        )
        assert any("embed" in name for name in seen) == whole


def test_a_bound_on_memory_changes_no_bytes(tmp_path, monkeypatch):
    """Catches a result that hangs on what is kept between passes."""
    monkeypatch.setattr(
        spectral_engine.streaming.folder,
        "model_of_folder",
        lambda *_, **__: (without_weights(Decoder), "Tiny"),
    )
    source = write_folder(made(Decoder), tmp_path / "in")
    least = se.estimate_file(source, "wanda", 0.5, calibration=batches()).memory
    found = []
    for name, most in (("free", None), ("bound", least)):
        se.prune_file(source, tmp_path / name, "wanda", 0.5, calibration=batches(), max_memory=most)
        files = sorted((tmp_path / name).glob("*.safetensors"))
        found.append([path.read_bytes() for path in files])
    assert found[0] == found[1]


def test_what_is_loaded_whole(tmp_path):
    """Catches an embedding that changes its table, or scales its rows, taken for a plain one, and
    a format that gives no rows."""

    class Scaled(nn.Embedding):
        def forward(self, ids):
            return 2 * super().forward(ids)

    values = torch.randn(7, 5)
    save_file({"a.weight": values}, tmp_path / "a.safetensors")
    torch.save({"a.weight": values}, tmp_path / "a.bin")
    with torch.device("meta"):
        kinds = [nn.Embedding(7, 5), Scaled(7, 5), nn.Embedding(7, 5, max_norm=1.0)]
    found = []
    for name in ("a.safetensors", "a.bin"):
        with open_checkpoint(tmp_path / name) as checkpoint:
            for kind in kinds:
                weights = FileWeights(checkpoint, nn.ModuleDict({"a": kind}))
                found.append(is_table(Piece("a", kind, False), weights))
    assert found == [True, False, False, False, False, False]
