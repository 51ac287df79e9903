"""The command line: one-line errors, clean standard output, the same bits as the API."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import spectral_engine as se
from spectral_engine.cli import app, main


@pytest.fixture
def source(tmp_path, monkeypatch) -> Path:
    """A small checkpoint in the working directory."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save_file(
        {"a.weight": torch.randn(12, 8), "a.bias": torch.zeros(12), "b.weight": torch.randn(6, 12)},
        "in.safetensors",
        {"format": "pt"},
    )
    return tmp_path / "in.safetensors"


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the command line here; (exit status, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["spectral-engine", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return run


def test_prune_equals_the_api(source, call):
    """Catches an option that does not arrive, and bits that depend on how one calls."""
    recipe = se.Recipe(se.Randomized(law="l2"), budget=se.Uniform(group="row"), refit=se.Scale())
    recipe.save("recipe.toml")
    status, out, err = call(
        "prune", source, "-o", "out.safetensors", "--recipe", "recipe.toml", "--sparsity", 0.5,
        "--seed", 5, "--ignore", "b", "--targets", "*", "--targets", "a",
    )  # fmt: skip
    assert (status, err) == (0, "")
    se.prune_file(source, "api.safetensors", recipe, 0.5, ignore="b", seed=5)
    assert Path("out.safetensors").read_bytes() == Path("api.safetensors").read_bytes()
    assert "a.weight" in out
    assert "ignored by 'b'" in out
    assert out.splitlines()[-1] == "wrote out.safetensors"


def test_compress_as_it_prunes(tmp_path, monkeypatch, call):
    """Catches --compress that writes other weights than pruning and compressing one after the
    other, or leaves the dense file behind."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save_file({"a.weight": torch.randn(64, 96), "a.bias": torch.zeros(64)}, "in.safetensors")
    status, out, err = call("prune", "in.safetensors", "-o", "out.safetensors", "--compress")
    assert (status, err) == (0, "")
    assert sorted(os.listdir()) == ["in.safetensors", "out.safetensors"]
    se.prune_file("in.safetensors", "dense.safetensors", "magnitude")
    se.decompress_file("out.safetensors", "again.safetensors")
    assert Path("again.safetensors").read_bytes() == Path("dense.safetensors").read_bytes()
    small, large = (Path(name).stat().st_size for name in ("out.safetensors", "dense.safetensors"))
    assert small < 0.25 * large
    assert "wrote out.safetensors" in out


def test_measure(source, call):
    """Catches --recipe or --measure lost on the way."""
    arguments = ("prune", source, "-o", "o.safetensors", "--recipe", "principal")
    status, out, _ = call(*arguments, "--measure", "--json")
    assert status == 0
    report = json.loads(out)
    assert [layer["rank"] for layer in report["layers"]] == [4, 3]
    assert all(layer["spectral"] > 0 for layer in report["layers"])


def test_json_is_all_there_is_on_stdout(source, call):
    """Catches a message or a progress bar between the braces."""
    status, out, err = call("prune", source, "-o", "out.safetensors", "--json")
    assert (status, err) == (0, "")
    report = json.loads(out)
    assert report["output"] == "out.safetensors"
    assert report["recipes"][0]["method"] == {"name": "magnitude"}
    assert {layer["name"] for layer in report["layers"]} == {"a.weight", "b.weight"}


def test_long_names_stay_on_one_line_in_a_log(tmp_path, call):
    """Catches a table whose rows are broken or cut where no terminal asks for it; and names that
    are taken for markup or that steer the terminal."""
    names = ["model.encoder.layer.11.attention.self.query.weight", "[/bold]x", "\x1b[2Jwipe"]
    path = tmp_path / "in.safetensors"
    save_file({name: torch.randn(8, 8) for name in names}, path)
    target = tmp_path / "out.safetensors"
    status, out, _ = call("prune", path, "-o", target, "--recipe", "principal", "--measure")
    assert status == 0
    for name in (*names[:2], "?[2Jwipe"):
        assert any(name in line and "0.90" in line for line in out.splitlines()), name
    assert "\x1b" not in out


def test_report_is_a_page(source, call):
    """Catches --report that is not written, is written over a file of the user's, or is found out
    to be impossible only after the work."""
    status, out, err = call("prune", source, "-o", "o.safetensors", "--measure",
                            "--report", "prune.html")  # fmt: skip
    assert (status, err) == (0, "")
    assert out.splitlines()[-2:] == ["wrote prune.html", "wrote o.safetensors"]
    rest = {
        "compress": ["o.safetensors", "-o", "small.safetensors"],
        "spectrum": ["o.safetensors"],
        "compare": [source, "o.safetensors"],
    }
    for command, arguments in rest.items():
        status, out, _ = call(command, *arguments, "--report", f"{command}.html")
        assert status == 0
        assert f"wrote {command}.html" in out
    for command in ("prune", *rest):
        assert "a.<wbr>weight" in Path(f"{command}.html").read_text()
    Path("mine.html").write_text("mine")
    before = sorted(os.listdir())
    for name, message in (("mine.html", "is no report"), ("r.txt", "ends in .html"),
                          ("no/r.html", "expected a folder")):  # fmt: skip
        status, out, err = call("prune", source, "-o", "new.safetensors", "--report", name)
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert message in err
    assert sorted(os.listdir()) == before


ERRORS = [
    (["no.safetensors", "-o", "out.safetensors"], "no.safetensors: No such file or directory"),
    (["in.txt", "-o", "out.safetensors"], "expected a folder or a .safetensors, "),
    (["in.safetensors", "-o", "in.safetensors"], "exists already"),
    (["in.safetensors", "-o", "no/out.safetensors"], "to exist"),
    (["in.safetensors", "-o", "out.pt"], "out.pt: expected a"),
    (["short.safetensors", "-o", "out.safetensors"], "short.safetensors"),
    (["nan.safetensors", "-o", "out.safetensors"], "tensor 'c.weight': weight: expected finite"),
    (["in.safetensors", "-o", "out.safetensors", "--sparsity", "1.5"], "[0, 1); got 1.5"),
    (["in.safetensors", "-o", "out.safetensors", "--recipe", "nope"], "recipe: expected one of"),
    (["in.safetensors", "-o", "out.safetensors", "--recipe", "bad.toml"], "bad.toml: budget.floor"),
    (["in.safetensors", "-o", "out.safetensors", "--recipe", "no.toml"], "no.toml: No such file"),
    (["in.safetensors", "-o", "out.safetensors", "--recipe", "wanda"], "needs calibration inputs"),
    (["in.safetensors", "-o", "out.safetensors", "--seed", "-1"], "seed: expected 0 to"),
    (["in.safetensors", "-o", "out.safetensors", "--targets", "re:("], "regular expression"),
    (["in.safetensors", "-o", "out.safetensors", "--targets", "Linear"], "names no architecture"),
    (["empty", "-o", "out"], "expected one of model.safetensors"),
]


@pytest.mark.parametrize(("arguments", "message"), ERRORS, ids=[m for _, m in ERRORS])
def test_mistakes_are_one_line(source, call, arguments, message):
    """Catches a traceback, a message broken over lines, words on standard output, a zero status,
    and anything left on the disk."""
    Path("in.txt").write_text("x")
    Path("bad.toml").write_text('budget = {name = "erk", floor = 2}')
    Path("empty").mkdir()
    Path("short.safetensors").write_bytes(source.read_bytes()[:-1])
    save_file({"a.weight": torch.ones(4, 4), "c.weight": torch.ones(4, 4) / 0}, "nan.safetensors")
    before = sorted(os.listdir())
    status, out, err = call("prune", *arguments)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert sorted(os.listdir()) == before


def test_full_disk_is_one_line(source, call):
    """Catches a full disk that shows as a traceback, or half a file left."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, old[1]))
    try:
        status, out, err = call("prune", source, "-o", "out.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "out.safetensors: File too large" in err
    assert os.listdir() == ["in.safetensors"]


def test_force_replaces(source, call):
    """Catches --force that is not passed on."""
    Path("out.safetensors").write_text("old")
    assert call("prune", source, "-o", "out.safetensors")[0] == 1
    assert Path("out.safetensors").read_text() == "old"
    assert call("prune", source, "-o", "out.safetensors", "--force")[0] == 0
    assert (load_file("out.safetensors")["a.weight"] == 0).sum() == 86


def test_usage(call):
    """Catches a command or an option that --help does not show, or shows without a word."""
    status, out, _ = call("--help")
    assert status == 0
    assert "prune" in out
    assert "demo" in out
    status, out, _ = call("prune", "--help")
    assert status == 0
    for option in (
        "output", "recipe", "sparsity", "seed", "targets", "ignore", "measure", "compress", "force",
        "report", "json",
    ):  # fmt: skip
        assert f"--{option}" in out
    assert "--no-force" not in out
    assert "…" not in out
    assert call("prune", "--nope")[0] == 2
    assert call("--version")[1].strip() == se.__version__


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["spectral-engine", "comp"], {"compare", "compress"}),
        (["spectral-engine", "prune", "--recipe", "s"], {"spectral", "sparsegpt"}),
        (["spectral-engine", "prune", "--rep"], {"--report"}),
    ],
)
def test_a_shell_completes(call, monkeypatch, typed, offered):
    """Catches commands, options or recipes that a shell does not complete."""
    monkeypatch.setenv("_SPECTRAL_ENGINE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", " ".join(typed))
    monkeypatch.setenv("COMP_CWORD", str(len(typed) - 1))
    status, out, _ = call()
    assert (status, set(out.split())) == (0, offered)


@pytest.mark.parametrize(
    "command",
    [
        [Path(sys.executable).with_name("spectral-engine")],
        [sys.executable, "-m", "spectral_engine"],
        [sys.executable, "-m", "spectral_engine.cli"],
    ],
)
def test_installed_command(source, command):
    """Catches an entry point that is missing, or that dies outside of pytest."""
    done = subprocess.run(
        [*command, "prune", source, "-o", "o.safetensors"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "wrote o.safetensors" in done.stdout


def test_a_shell_completes_commands():
    """Catches a program whose completion script asks for words and gets none."""
    asked = {
        "_SPECTRAL_ENGINE_COMPLETE": "complete_bash", "COMP_WORDS": "spectral-engine co",
        "COMP_CWORD": "1",
    }  # fmt: skip
    done = CliRunner().invoke(app, prog_name="spectral-engine", env=asked)
    assert done.output.split() == ["compare", "compress"]
