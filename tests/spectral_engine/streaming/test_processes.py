"""Processes that share the calibrated pruning of a folder: the bytes of one process alone."""

import json
from pathlib import Path

import pytest
import torch

import spectral_engine as se
import spectral_engine.streaming.folder
from spectral_engine.checkpoints.leftovers import unfinished
from tests.support.processes import on_processes
from tests.support.streaming.block_models import (
    Decoder,
    EncoderDecoder,
    batches,
    made,
    without_weights,
    write_folder,
)

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="needs torch.distributed with gloo",
)

RECIPES = {
    "magnitude": "magnitude", "randomized": "randomized", "principal": "principal",
    "wanda": "wanda", "sparsegpt": "sparsegpt", "alps": "alps",
    "bias": se.Recipe(refit=se.LeastSquares(bias_correction=True)),
}  # fmt: skip

PROGRAM = """
import json, os
from pathlib import Path
import spectral_engine as se
import spectral_engine.streaming.folder
from spectral_engine.streaming.run import Streaming
from tests.support.streaming.block_models import Decoder, EncoderDecoder, batches, without_weights
folder, kind, end = Path(arguments[0]), arguments[1], json.loads(arguments[2])
spectral_engine.streaming.folder.model_of_folder = lambda *_, **__: (
    without_weights({"Decoder": Decoder, "EncoderDecoder": EncoderDecoder}[kind]), kind)
steps, own = [], Streaming._step
def step(self, relay, survey, number, *others):
    steps.append(number)
    if number == end:
        os._exit(0)
    return own(self, relay, survey, number, *others)
Streaming._step = step
def inputs():
    found = batches(5)
    if kind == "EncoderDecoder":
        found = [{"input_ids": one["input_ids"], "decoder_input_ids": one["input_ids"]}
                 for one in found]
    return found
def pruned(name, target, recipe, given=None, **options):
    report = se.prune_file(
        folder / "in", folder / target, recipe, 0.5, seed=3, progress=False,
        calibration=se.Calibration(given or inputs(), max_samples=20), **options)
    return [[one.name, one.nnz, one.samples, one.few, one.uncalibrated] for one in report.layers]
RECIPES = {
    "magnitude": "magnitude", "randomized": "randomized", "principal": "principal",
    "wanda": "wanda", "sparsegpt": "sparsegpt", "alps": "alps",
    "bias": se.Recipe(refit=se.LeastSquares(bias_correction=True)),
}
"""

ALL = """
found = {}
with se.share_work():
    for name, recipe in RECIPES.items():
        found[name] = pruned(name, f"{name}-{world}", recipe)
    broken = inputs()
    broken[1] = {"input_ids": broken[1]["input_ids"] + 1000}  # seen by the second process alone
    for what, given, options in (
        ("broken", broken, {}),
        ("other", inputs()[: 5 - rank], {}),
        ("required", inputs(), {"resume": "required"}),
    ):
        try:
            pruned(what, f"{what}-{world}", "wanda", given, **options)
        except Exception as error:
            found[what] = f"{type(error).__name__}: {error}"
        dist.barrier()
print(json.dumps(found)); leave()
"""

ONE = """
with se.share_work():
    pruned("wanda", "out", "sparsegpt", resume="auto")
print(json.dumps(steps)); leave()
"""


@pytest.fixture
def known(monkeypatch):
    """Folders are of a given kind of model, as if transformers knew it."""

    def of(kind):
        monkeypatch.setattr(
            spectral_engine.streaming.folder,
            "model_of_folder",
            lambda *_, **__: (without_weights(kind), kind.__name__),
        )

    return of


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def alone(folder: Path, kind, name: str) -> list:
    """The rows of one process's run, written to `NAME-1`."""
    given = batches(5)
    if kind is EncoderDecoder:
        given = [{**one, "decoder_input_ids": one["input_ids"]} for one in given]
        given = [{key: one[key] for key in ("input_ids", "decoder_input_ids")} for one in given]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        report = se.prune_file(
            folder / "in", folder / f"{name}-1", RECIPES[name], 0.5, seed=3, progress=False,
            calibration=se.Calibration(given, max_samples=20),
        )  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    return [[one.name, one.nnz, one.samples, one.few, one.uncalibrated] for one in report.layers]


@pytest.mark.parametrize(("processes", "kind"), [(2, Decoder), (4, Decoder), (2, EncoderDecoder)])
def test_any_number_of_processes_writes_the_bytes_of_one(tmp_path, known, processes, kind):
    """Catches outputs that the process which needs them does not find, sums of one process's share,
    layers that each process prunes for itself, rows that are lost, and an error of one process for
    which the others wait."""
    known(kind)
    write_folder(made(kind), tmp_path / "in")
    outputs = on_processes(processes, PROGRAM + ALL, str(tmp_path), kind.__name__, "null")
    found = [json.loads(output.splitlines()[-1]) for output in outputs]
    for name in RECIPES:
        assert found[0][name] == alone(tmp_path, kind, name), name
        assert content(tmp_path / f"{name}-{processes}") == content(tmp_path / f"{name}-1"), name
    assert all(one == found[0] for one in found)
    assert "the model does not take batch 1" in found[0]["broken"]
    assert "expected the same run on all; the first has another calibration" in found[0]["other"]
    assert "there is none" in found[0]["required"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("numbers", [(2, 3), (3, 1)])
def test_another_number_of_processes_goes_on(tmp_path, known, numbers):
    """Catches a run that only as many processes can finish, or that takes what a process of the
    earlier one had begun to write for outputs of its own."""
    known(Decoder)
    write_folder(made(Decoder), tmp_path / "in")
    first, second = numbers
    arguments = (str(tmp_path), "Decoder")
    on_processes(first, PROGRAM + ONE, *arguments, "2")
    left = unfinished(tmp_path / "out")
    (left / "outputs" / "step-0002.3.bin").write_bytes(b"begun")
    (left / "outputs" / "step-0002.3.json").write_text("begun")
    outputs = on_processes(second, PROGRAM + ONE, *arguments, "null")
    assert [json.loads(output.splitlines()[-1]) for output in outputs] == [[2, 3, 4]] * second
    alone(tmp_path, Decoder, "sparsegpt")
    assert content(tmp_path / "out") == content(tmp_path / "sparsegpt-1")
