"""The examples: their notebooks are those of the scripts, and run from top to bottom."""

import importlib.util
import json

import pytest

from tests.support.pages import REPOSITORY

EXAMPLES = REPOSITORY / "docs" / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))


def notebook_of(script: str) -> str:
    """As `python docs/notebooks.py` makes it."""
    spec = importlib.util.spec_from_file_location("notebooks", REPOSITORY / "docs/notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.notebook_of(script)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_notebook_is_its_script(script):
    """Catches a script that was changed without its notebook: run `python docs/notebooks.py`."""
    text = script.read_text()
    written = script.with_suffix(".ipynb").read_text()
    assert written == notebook_of(text)
    cells = json.loads(written)["cells"]
    assert text.startswith("# %% [markdown]\n# # ")
    code = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
    assert sum(map(len, code)) > len(text) / 2
    assert all(one in text for one in code)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_notebook_runs(script, tmp_path, monkeypatch, capsys):
    """Catches an example that a change of the code has left behind."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for cell in json.loads(script.with_suffix(".ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec(compile(cell["source"], script.name, "exec"), names)
    assert capsys.readouterr().out


def test_every_example_is_listed():
    """Catches an example that nobody finds."""
    listed = (EXAMPLES / "index.md").read_text()
    assert len(SCRIPTS) >= 5
    for script in SCRIPTS:
        assert f"`{script.name}`" in listed
        assert f"`{script.stem}.ipynb`" in listed
