"""`spectral-engine profile`: that its figures are of what they say, on the device at hand."""

import json
import sys
from pathlib import Path

import pytest
import torch

from spectral_engine import cli
from spectral_engine.profiling import run as profiling
from spectral_engine.profiling.device import pick_device
from spectral_engine.profiling.records import ProfileCase
from spectral_engine.profiling.run import profile_cases, profile_model
from spectral_engine.profiling.shapes import MODELS, BlockShapes, LayerShape, ModelShapes

TINY = ModelShapes(
    "tiny", "float32",
    (BlockShapes("block", 3, (LayerShape("up", (24, 8)), LayerShape("down", (8, 24)))),
     BlockShapes("head", 1, (LayerShape("head", (10, 8)),))),
)  # fmt: skip


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    """Exit status, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["spectral-engine", "profile", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr()
    return int(end.value.code or 0), said.out, said.err


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        # 6,738,415,616 parameters less the embedding's 32,000 x 4,096 and 65 norms of 4,096.
        ("llama-7b", 6_738_415_616 - 32_000 * 4096 - 65 * 4096),
        # 68,976,648,192 less the embedding and 161 norms of 8,192.
        ("llama-70b", 68_976_648_192 - 32_000 * 8192 - 161 * 8192),
        # torchvision's 143,667,240 less its biases.
        ("vgg19", 143_667_240 - (2 * 64 + 2 * 128 + 4 * 256 + 8 * 512 + 2 * 4096 + 1000)),
        ("minilm", 6 * (4 * 384 * 384 + 2 * 384 * 1536) + 384 * 384),
    ],
)
def test_models_have_the_published_size(name: str, entries: int) -> None:
    """A layer left out, or one of a wrong shape; the counts are those of the released weights."""
    assert MODELS[name].size == entries


def test_row_counts_what_must_move() -> None:
    """Bytes of another dtype, a pass or the factors forgotten; a share that is not of the copy."""
    case = ProfileCase((40, 30), "bfloat16", "principal", 0.5, 4)
    (row,) = profile_cases([case], "cpu", 3).rows
    assert row.bytes == 3 * 40 * 30 * 2 + 2 * 4 * 4 * (40 + 30)
    assert row.operations == 40 * 30 * (30 + 2 * 2 * 4)
    assert (row.rank, row.calls) == (4, 3)
    assert row.gb_per_s == pytest.approx(row.bytes / row.seconds / 1e9)
    assert row.total_seconds >= row.seconds + row.svd_seconds > row.seconds > 0.0


def test_share_is_of_the_copy_of_the_same_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """A share turned upside down, or of the medians."""
    spent = iter([(None, 0.0, 9.0), (None, 0.0, 4.0), (None, 0.0, 2.0), (None, 0.0, 8.0)])
    copies = iter([1.0, 1.0, 1.0])
    monkeypatch.setattr(profiling, "_sparsify", lambda *_: next(spent))
    monkeypatch.setattr(profiling, "_copy", lambda *_: next(copies))
    (row,) = profile_cases([ProfileCase((8, 8), "float32", "magnitude", 0.5)], "cpu", 3).rows
    assert row.share == pytest.approx(3 / 2 * 1 / 4)
    assert row.seconds == 4.0


@pytest.mark.parametrize(("free", "resident", "made"), [(1 << 30, "whole", 7), (0, "block", 3)])
def test_model_that_fits_and_one_that_does_not(
    monkeypatch: pytest.MonkeyPatch, free: int, resident: str, made: int
) -> None:
    """A model made whole in memory that it does not fit; layers that are not run, or not as often
    as the network has them.
    """
    shapes = []
    synthetic = profiling._synthetic

    def counted(case: ProfileCase, device: str) -> torch.Tensor:
        shapes.append(case.shape)
        return synthetic(case, device)

    monkeypatch.setattr(profiling, "_synthetic", counted)
    monkeypatch.setattr(profiling, "free_bytes", lambda device: free)
    found = profile_model(TINY, "magnitude", 0.9, "cpu")
    assert found.resident == resident
    assert len(shapes) == made
    assert [(row.case.label, row.calls) for row in found.rows] == [
        ("up", 3), ("down", 3), ("head", 1),
    ]  # fmt: skip
    assert found.total_seconds == pytest.approx(sum(row.total_seconds for row in found.rows))


def test_model_options() -> None:
    """A limit on blocks that is passed over; a rank above that of a small layer that is refused."""
    found = profile_model(TINY, "principal", 0.9, "cpu", blocks=1, rank=20, dtype="bfloat16")
    assert [(row.calls, row.rank, row.case.dtype) for row in found.rows] == [
        (1, 8, "bfloat16")
    ] * 3  # fmt: skip


def test_command_writes_everything(tmp_path: Path, monkeypatch, capsys) -> None:
    """A combination left out of the sweep, a file that is not written, a table without figures."""
    out, plot, trace = tmp_path / "p.json", tmp_path / "p.png", tmp_path / "t.json"
    code, said, err = run(
        monkeypatch, capsys, "--device", "cpu", "--shape", "24x40", "--shape", "9x3x3",
        "--dtype", "float16", "--rank", 2, "--rank", 3, "--density", 0.25, "--density", 0.5,
        "--repeats", 1, "-o", out, "--plot", plot, "--trace", trace,
    )  # fmt: skip
    assert code == 0, err
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == 2 * 2 * (1 + 1 + 2)
    assert {(row["method"], row["rank"]) for row in rows} == {
        ("magnitude", None), ("randomized", None), ("principal", 2), ("principal", 3),
    }  # fmt: skip
    assert {tuple(row["shape"]) for row in rows} == {(24, 40), (9, 3, 3)}
    assert {row["sparsity"] for row in rows} == {0.75, 0.5}
    assert plot.read_bytes()[:4] == b"\x89PNG"
    assert any(
        "principal" in event.get("name", "")
        for event in json.loads(trace.read_text())["traceEvents"]
    )
    assert "24x40" in said
    assert "of copy" in said


def test_command_of_a_model(monkeypatch, capsys) -> None:
    """Anything but JSON on stdout; a model whose own dtype is not taken."""
    code, out, err = run(
        monkeypatch, capsys, "--device", "cpu", "--model", "minilm", "--blocks", 1, "--json"
    )
    assert code == 0, err
    found = json.loads(out)
    assert (found["model"], len(found["rows"])) == ("minilm", 7)
    assert {row["dtype"] for row in found["rows"]} == {"float32"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--shape", "12"], "shape: expected sizes as in 4096x11008; got '12'"),
        (["--shape", "0x4"], "shape: expected two or more sizes of at least 1; got (0, 4)"),
        (["--dtype", "int8"], "dtype: expected one of float16"),
        (["--density", "0"], "density: expected the fraction kept, in (0, 1]; got 0.0"),
        (["--method", "svd"], "method: expected one of magnitude"),
        (["--method", "principal", "--shape", "4x9", "--rank", "5"], "rank: expected 1 to 4"),
        (["--repeats", "0"], "repeats: expected at least 1; got 0"),
        (["--device", "tpu"], "device: expected one of auto, cpu, cuda; got 'tpu'"),
        (["--model", "gpt"], "model: expected one of llama-7b"),
        (["--model", "minilm", "--shape", "4x4"], "model: expected no --shape"),
        (["--model", "minilm", "--blocks", "0"], "blocks: expected at least 1; got 0"),
        (
            ["--model", "minilm", "--repeats", "3"],
            "model: expected no --shape, --trace or --repeats",
        ),
        (["-o", "none/x.json"], "none/x.json: expected a folder to write to"),
        (["--blocks", "2"], "blocks: only --model has blocks; got 2"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], expected: str, monkeypatch, capsys) -> None:
    """A trace, or a message that does not name what was wrong."""
    code, out, err = run(monkeypatch, capsys, *arguments)
    assert (code, out) == (1, "")
    assert expected in " ".join(err.split())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_cuda_that_is_not_there() -> None:
    """A run on the CPU that passes for one on the device that was asked for."""
    assert pick_device("auto") == "cpu"
    with pytest.raises(RuntimeError, match="device: expected a CUDA device"):
        pick_device("cuda")


def test_sparse_sweep(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A combination left out, bytes of another form, an option that is ignored."""
    arguments = ["--sparse", "--shape", "40x16", "--density", 0.5, "--density", 0.25]
    arguments += ["--sides", 1, "--sides", 3, "--repeats", 1, "--device", "cpu"]
    status, said, _ = run(monkeypatch, capsys, *arguments, "--json", "-o", tmp_path / "found.json")
    rows = json.loads(said)
    assert status == 0
    assert rows == json.loads((tmp_path / "found.json").read_text())
    assert [(row["sparsity"], row["sides"]) for row in rows] == [
        (0.5, 1), (0.5, 3), (0.75, 1), (0.75, 3),
    ]  # fmt: skip
    for row in rows:
        assert row["dense_bytes"] == 40 * 16 * 4
        kept = (row["bytes"] - 40 * 2 - 40 * 8) / (40 * 16 * 4)
        assert abs(kept - (1.0 - row["sparsity"])) < 0.15
        assert row["speedup"] == pytest.approx(row["dense_seconds"] / row["seconds"])
    assert "faster" in run(monkeypatch, capsys, *arguments)[1]
    for wrong in (["--sparse", "--method", "magnitude"], ["--sides", 2]):
        status, _, error = run(monkeypatch, capsys, *wrong)
        assert status == 1
        assert wrong[0].strip("-") in error
