"""The commands compress and decompress."""

import json

from typer.testing import CliRunner

from spectral_engine.cli import app
from tests.support.sparse_weights import save


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(one) for one in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_there_and_back(tmp_path):
    """Catches an option that is not passed on, and a report that is no JSON."""
    dense, small = save(tmp_path / "dense.safetensors"), tmp_path / "small.safetensors"
    said = run("compress", dense, "-o", small)
    assert "fc.weight" in said
    assert "bitmask" in said
    found = json.loads(
        run("compress", dense, "-o", small, "--force", "--json", "--targets=fc*", "--ignore=x")
    )
    assert [row["name"] for row in found["weights"]] == ["fc.weight"]
    assert found["unmatched"] == ["ignore 'x'"]
    assert 0 < found["ratio"] < 1
    run("decompress", small, "-o", tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == dense.read_bytes()
    done = CliRunner().invoke(app, ["decompress", str(small), "-o", str(dense)])
    assert isinstance(done.exception, FileExistsError)
