"""Calibrated pruning of a folder: the same bits as in memory, a block at a time."""

import gc
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import spectral_engine as se
import spectral_engine.streaming.folder
from spectral_engine.streaming.pieces import Piece
from tests.support.streaming.block_models import (
    Changing,
    Decoder,
    EncoderDecoder,
    Secretive,
    Shared,
    Skipping,
    batches,
    made,
    without_weights,
    write_folder,
)


@pytest.fixture
def known(monkeypatch):
    """Folders are of a given kind of model, as if transformers knew it."""

    def of(kind):
        def build(path, config, runs_in=None):
            return without_weights(kind), "Tiny"

        monkeypatch.setattr(spectral_engine.streaming.folder, "model_of_folder", build)
        return kind

    return of


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def rows(report: se.PruneReport) -> list[dict]:
    return [{**row, "seconds": 0} for row in report.to_dict()["layers"]]


def both(tmp_path, kind, recipe, inputs, **options):
    """The report and the tensors of pruning in memory, and in the folder."""
    model = made(kind)
    source = write_folder(model, tmp_path / "in")
    found = se.prune_file(
        source, tmp_path / "out", recipe, 0.5, calibration=se.Calibration(inputs, **options)
    )
    calibration = se.Calibration(inputs, **{"sequential": True, **options})
    wanted = se.prune(model, recipe, 0.5, calibration=calibration)
    return wanted, model.state_dict(), found, tensors(tmp_path / "out")


@pytest.mark.parametrize(
    ("kind", "recipe"),
    [
        (Decoder, "wanda"),
        (Decoder, "sparsegpt"),
        (lambda: Decoder(tied=True), "wanda"),
        (Decoder, se.Recipe(budget=se.ERK(0.5), refit=se.LeastSquares(bias_correction=True))),
        (Decoder, se.Recipe(budget=se.Global(0.5))),
        (EncoderDecoder, "wanda"),
        (Skipping, "wanda"),
    ],
    ids=["wanda", "sparsegpt", "tied", "least squares", "global", "encoder-decoder", "skipping"],
)
def test_the_result_is_that_of_pruning_in_memory(tmp_path, known, kind, recipe):
    """Catches inputs of a block that are not those behind pruned blocks, a mask or a buffer that is
    lost, another stream or sample, a layer without inputs that is pruned before its block has given
    its outputs, an output that was needed later, a tied weight, and a bias that is not written."""
    known(kind)
    inputs = batches()
    if kind is EncoderDecoder:
        inputs = [{**one, "decoder_input_ids": one["input_ids"][:, :4]} for one in inputs]
        for one in inputs:
            one.pop("attention_mask", None)
    wanted, model, found, files = both(tmp_path, kind, recipe, inputs)
    assert rows(found) == rows(wanted)
    assert found.calibration == wanted.calibration
    assert sorted(map(str, found.skipped)) == sorted(map(str, wanted.skipped))
    assert {row.samples for row in found.layers} > {None}
    for name, tensor in files.items():
        assert torch.equal(tensor, model[name]), name
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_dense_inputs(tmp_path, known):
    """Catches `sequential=False` that lets later blocks see pruned ones, and counts a pass a
    block."""
    known(Decoder)
    wanted, model, found, files = both(tmp_path, Decoder, "wanda", batches(), sequential=False)
    assert {row["name"]: row for row in rows(found)} == {row["name"]: row for row in rows(wanted)}
    assert all(torch.equal(tensor, model[name]) for name, tensor in files.items())
    assert found.calibration.passes == 1


def test_files_keep_their_dtypes_and_company(tmp_path, known):
    """Catches a folder that comes back in another dtype, order or with a file missing."""
    known(Decoder)
    source = write_folder(made(Decoder).bfloat16(), tmp_path / "in")
    (source / "tokenizer.json").write_text("{}")
    se.prune_file(source, tmp_path / "out", "wanda", 0.5, calibration=batches())
    before, after = tensors(source), tensors(tmp_path / "out")
    assert list(after) == list(before)
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    assert {path.name for path in source.iterdir()} == {
        path.name for path in (tmp_path / "out").iterdir()
    }
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) == 3 * 7 + 1


def test_one_block_is_loaded_at_a_time(tmp_path, known, monkeypatch):
    """Catches a block that is not let go of, and one that is read more often than twice."""
    known(Decoder)
    source = write_folder(made(Decoder), tmp_path / "in")
    loads: list[str] = []
    here: set[str] = set()
    original = spectral_engine.streaming.run.loaded

    class Watched:
        def __init__(self, piece: Piece, values) -> None:
            self.piece, self.inner = piece, original(piece, values)

        def __enter__(self):
            loads.append(self.piece.name)
            here.add(self.piece.name)
            assert len(here) == 1
            return self.inner.__enter__()

        def __exit__(self, *error):
            here.discard(self.piece.name)
            return self.inner.__exit__(*error)

    monkeypatch.setattr(spectral_engine.streaming.run, "loaded", Watched)
    se.prune_file(source, tmp_path / "out", "wanda", 0.5, calibration=batches())
    assert max(map(loads.count, loads)) == 3  # the whole, by itself, and to prune
    assert set(loads) == {"blocks.0", "blocks.1", "blocks.2", "head"}  # and rows of the table


def test_what_is_not_pruned_behind_the_last_block_is_not_run(tmp_path, known, monkeypatch):
    """Catches an output head that is read, and whose outputs, as wide as the vocabulary, are
    held, for nothing."""
    known(Decoder)
    source = write_folder(made(Decoder), tmp_path / "in")
    seen: list[str] = []
    original = spectral_engine.streaming.run.loaded

    def noted(piece, values):
        seen.append(piece.name)
        return original(piece, values)

    monkeypatch.setattr(spectral_engine.streaming.run, "loaded", noted)
    se.prune_file(source, tmp_path / "out", "wanda", 0.5, calibration=batches(), ignore="head")
    assert {*seen} == {"blocks.0", "blocks.1", "blocks.2"}


def test_a_block_is_let_go_of_at_once(tmp_path, known, monkeypatch):
    """Catches blocks that wait in cycles of references for the garbage collector, one after the
    other, so that the model is in memory after all."""
    known(Decoder)
    source = write_folder(made(Decoder), tmp_path / "in")
    alive: list[weakref.ref] = []
    original = spectral_engine.streaming.run.Reaching

    def noted(*arguments):
        found = original(*arguments)
        assert [one for one in alive if one() is not None] == []
        alive.append(weakref.ref(found))
        return found

    monkeypatch.setattr(spectral_engine.streaming.run, "Reaching", noted)
    gc.disable()
    try:
        se.prune_file(source, tmp_path / "out", "wanda", 0.5, calibration=batches())
    finally:
        gc.enable()
    assert len(alive) == 4


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Secretive, "gives something else when it runs by itself"),
        (Shared, "blocks.0 is called 2 times a batch"),
        (Changing, r"batch 1 calls blocks\.2 where the first batch calls blocks\.0"),
        (lambda: torch.nn.Sequential(torch.nn.Embedding(40, 8), torch.nn.Linear(8, 4)), "repeated"),
    ],
    ids=["secretive", "shared", "changing", "no blocks"],
)
def test_models_that_do_not_run_in_pieces_are_refused(tmp_path, known, kind, said):
    """Catches a model whose blocks share more than their outputs and that is pruned all the same,
    and an error that does not name the way in memory; leaves nothing behind."""
    known(kind)
    source = write_folder(made(kind), tmp_path / "in")
    inputs = batches()
    inputs[1]["input_ids"] = inputs[1]["input_ids"] + 1
    calibration = inputs
    if kind not in (Secretive, Shared, Changing):
        calibration = [one["input_ids"] for one in inputs]
    with pytest.raises(ValueError, match=said) as error:
        se.prune_file(source, tmp_path / "out", "wanda", 0.5, calibration=calibration)
    assert "se.prune(model, recipe, calibration=batches)" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_presets_that_fit_the_whole_model(tmp_path, known):
    """Catches "best" that is quietly less than it says, and "auto" that does not say what it
    left out."""
    known(Decoder)
    source = write_folder(made(Decoder), tmp_path / "in")
    with pytest.raises(ValueError, match="recipe: reconstruction runs the dense model beside"):
        se.prune_file(source, tmp_path / "out", "best", 0.5, calibration=batches())
    report = se.prune_file(source, tmp_path / "out", "auto", 0.5, calibration=batches())
    assert any(note.startswith("auto: pruned layer by layer") for note in report.notes)


def test_bad_calls(tmp_path, known):
    """Catches an argument that is not checked before the work, and an error that does not name
    it."""
    known(Decoder)
    source = write_folder(made(Decoder), tmp_path / "in")
    inputs = batches()
    file = tmp_path / "one.safetensors"
    save_file({"a.weight": torch.ones(4, 4)}, file)
    gathered = se.calibrate(made(Decoder), inputs)
    for options, kind, said in (
        ({"resume": "maybe"}, ValueError, "resume: expected one of auto, required, never"),
        ({"resume": "required"}, ValueError, "resume: expected an unfinished run"),
        ({"max_memory": 10}, ValueError, "max_memory: expected at least"),
        ({"max_memory": "2G"}, TypeError, "max_memory: expected an integer"),
        ({"calibration": gathered}, TypeError, "calibration: expected batches"),
        ({"calibration": []}, ValueError, "calibration: expected at least one batch"),
        ({"calibration": se.Calibration(inputs, asymmetric=True)}, ValueError, "asymmetric:"),
        ({"targets": "nothing"}, ValueError, "targets: no prunable weight"),
    ):
        with pytest.raises(kind, match=said):
            se.prune_file(
                source, tmp_path / "out", "wanda", 0.5, **{"calibration": inputs, **options}
            )
    with pytest.raises(ValueError, match="expected a Hugging Face folder"):
        se.prune_file(file, tmp_path / "out.safetensors", "wanda", 0.5, calibration=inputs)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "one.safetensors"]


def test_a_missing_weight_is_named(tmp_path, known):
    """Catches a weight that the folder lacks and that is made up instead."""
    known(Decoder)
    model = made(lambda: Decoder(blocks=2))
    source = write_folder(model, tmp_path / "in")
    with pytest.raises(ValueError, match=r"expected 'blocks\.2\..* of the model among its tensors"):
        se.prune_file(source, tmp_path / "out", "wanda", 0.5, calibration=batches())


def test_an_estimate_costs_nothing_and_bounds_the_memory(tmp_path, known):
    """Catches an estimate that reads weights or writes, and one without the moments."""
    known(Decoder)
    source = write_folder(made(Decoder), tmp_path / "in")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    estimate = se.estimate_file(source, "wanda", 0.5, calibration=batches())
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert estimate.samples == 36
    assert estimate.memory > 4 * 24 * 24
    assert estimate.seconds > 0
    assert estimate.largest in str(estimate)
