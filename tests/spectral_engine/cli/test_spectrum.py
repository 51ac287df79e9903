"""`spectral-engine spectrum` and `compare`, as a user or a script runs them."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import spectral_engine as se
from spectral_engine import cli

WEIGHTS = {
    "embed.weight": torch.arange(60.0).reshape(20, 3),
    "layer.weight": torch.diag(torch.linspace(8, 1, 15)),
    "layer.bias": torch.ones(15),
    "codes": torch.zeros(2, 2, dtype=torch.int64),
}


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    save_file(WEIGHTS, tmp_path / "dense.safetensors")
    return tmp_path / "dense.safetensors"


def pruned(path: Path, **changes: torch.Tensor | None) -> Path:
    kept = {"layer.weight": torch.diag(torch.linspace(8, 1, 15)).tril(), **WEIGHTS, **changes}
    target = path.with_name("pruned.safetensors")
    save_file({name: tensor for name, tensor in kept.items() if tensor is not None}, target)
    return target


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    """Exit status, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["spectral-engine", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr()
    return int(end.value.code or 0), said.out, said.err


def test_spectrum_json_is_the_api(dense: Path, monkeypatch, capsys) -> None:
    """Catches anything but JSON on stdout, and a command that sees other weights than the API."""
    code, out, err = run(monkeypatch, capsys, "spectrum", dense, "--rank", 2, "--json")
    assert (code, err) == (0, "")
    read = json.loads(out)
    expected = json.loads(json.dumps(se.spectra(dense, 2, progress=False).to_dict()))
    for document in (read, expected):
        document.pop("seconds")
        for layer in document["layers"]:
            layer.pop("seconds")
    assert read == expected
    assert [layer["name"] for layer in read["layers"]] == ["embed.weight", "layer.weight"]
    np.testing.assert_allclose(read["layers"][1]["singular_values"], [8.0, 7.5], rtol=1e-5)
    assert [row["name"] for row in read["skipped"]] == ["codes"]


def test_spectrum_table_and_plot(dense: Path, monkeypatch, capsys) -> None:
    """Catches a table that drops rows, hides what is skipped, or a plot that is not written."""
    plot = dense.with_name("s.png")
    code, out, _ = run(monkeypatch, capsys, "spectrum", dense, "--plot", plot, "--full")
    assert code == 0
    assert "embed.weight" in out
    assert "layer.weight" in out
    assert "no spectrum, int64 has no spectrum: codes" in out
    assert plot.read_bytes()[:4] == b"\x89PNG"


def test_spectrum_of_a_folder(tmp_path: Path, monkeypatch, capsys) -> None:
    """Catches shards that are not read."""
    save_file({"a": torch.eye(3)}, tmp_path / "one.safetensors")
    save_file({"b": torch.eye(4)}, tmp_path / "two.safetensors")
    index = {"metadata": {}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    code, out, _ = run(monkeypatch, capsys, "spectrum", tmp_path, "--json")
    assert code == 0
    assert [layer["name"] for layer in json.loads(out)["layers"]] == ["a", "b"]


def test_compare_against_closed_forms(dense: Path, monkeypatch, capsys) -> None:
    """Catches errors of the wrong pair, order or scale: the smallest of 15 diagonal entries is
    dropped, the largest halved.
    """
    diagonal = torch.linspace(8, 1, 15)
    changed = diagonal.clone()
    changed[0], changed[-1] = 4.0, 0.0
    target = pruned(dense, **{"layer.weight": torch.diag(changed)})
    code, out, err = run(monkeypatch, capsys, "compare", dense, target, "--rank", 2, "--json")
    assert (code, err) == (0, "")
    same, moved = json.loads(out)["layers"]
    assert (same["name"], moved["name"]) == ("embed.weight", "layer.weight")
    assert same["spectral"] == same["frobenius"] == same["right_angle"] == 0.0
    assert moved["spectral"] == pytest.approx(4 / 8, rel=1e-4)
    frobenius = (16 + 1) ** 0.5 / float(diagonal.square().sum()) ** 0.5
    assert moved["frobenius"] == pytest.approx(frobenius, rel=1e-5)
    assert moved["worst_singular_value"] == pytest.approx(0.5 / 7.5, rel=1e-4)
    assert moved["mean_singular_value"] == pytest.approx((0.5 / 8 + 0.5 / 7.5) / 2, rel=1e-4)
    # {e1, e2} against {e2, e3}: one direction is shared, the other is orthogonal.
    assert moved["left_angle"] == pytest.approx(np.pi / 2, abs=1e-4)
    assert moved["sparsity"] == pytest.approx(1 - 14 / 225)
    code, out, _ = run(monkeypatch, capsys, "compare", dense, target)
    assert code == 0
    assert "layer.weight" in out
    assert "not compared, int64 has no spectrum: codes" in out


def test_compare_refuses_what_does_not_match(dense: Path, monkeypatch, capsys) -> None:
    """Catches a tensor that is missing, too many or of another shape passed over in silence."""
    for changes, expected in (
        ({"layer.weight": None}, "it lacks 'layer.weight'"),
        ({"extra.weight": torch.ones(2, 2)}, "it has 'extra.weight'"),
        ({"layer.weight": torch.ones(5, 45)}, "'layer.weight' of"),
        ({"layer.weight": torch.full((15, 15), torch.nan)}, "tensor 'layer.weight': sparse"),
    ):
        code, out, err = run(monkeypatch, capsys, "compare", dense, pruned(dense, **changes))
        assert (code, out) == (1, "")
        assert expected in err
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["none.safetensors"], "none.safetensors"),
        (["dense.safetensors", "--rank", "0"], "rank: expected at least 1; got 0"),
        (["dense.safetensors", "--tolerance", "-1"], "tolerance: expected a number above 0"),
        (["dense.safetensors", "--targets", "x.*"], "targets 'x.*'"),
        (["dense.txt"], "dense.txt"),
        (["dense.safetensors", "--plot", "none/x.png"], "none/x.png: expected a folder"),
        (["dense.safetensors", "--plot", "x.xyz"], "x.xyz: expected a name that ends in .png"),
        (["[/1].safetensors"], "[/1].safetensors"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], expected: str, dense: Path, monkeypatch, capsys
) -> None:
    """Catches a trace, or a message that does not name what was wrong."""
    monkeypatch.chdir(dense.parent)
    (dense.parent / "dense.txt").write_text("")
    code, out, err = run(monkeypatch, capsys, "spectrum", *arguments)
    assert (code, out) == (1, "")
    assert expected in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_nan_is_named(dense: Path, monkeypatch, capsys) -> None:
    """Catches a NaN tensor of a file that is not named."""
    bad = pruned(dense, **{"layer.weight": torch.full((15, 15), torch.inf)})
    code, _, err = run(monkeypatch, capsys, "spectrum", bad)
    assert code == 1
    assert "layer.weight holds NaN or infinity" in err
