"""README's Python, as it stands."""

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[1] / "README.md"


def test_code_blocks_run_as_they_stand(tmp_path, monkeypatch, capsys):
    """Catches an example that a change of the code has left behind."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 7
    names: dict[str, object] = {}
    for block in blocks:
        try:
            exec(compile(block, "README.md", "exec"), names)
        except Exception as error:
            pytest.fail(f"{error!r} in:\n{block}")
    assert {path.name for path in tmp_path.iterdir()} >= {"pruned.pt", "recipe.toml", "spectra.npz"}
    assert "Recipe(Magnitude()" in capsys.readouterr().out
