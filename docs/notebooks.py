"""Notebooks from the scripts of docs/examples: `python docs/notebooks.py` writes them anew.

A script is cells: `# %%` begins one of code, `# %% [markdown]` one of text in comments.
"""

import json
import re
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parent / "examples"
_CELL = re.compile(r"^# %%( \[markdown\])?\n", re.MULTILINE)


def notebook_of(script: str) -> str:
    """The text of a notebook, without outputs, that has the cells of a script."""
    parts = _CELL.split(script)[1:]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    cells = [_cell(index, kind is not None, text) for index, (kind, text) in enumerate(pairs)]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    notebook = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _cell(index: int, markdown: bool, text: str) -> dict[str, Any]:
    text = text.strip("\n")
    if markdown:
        text = re.sub(r"^# ?", "", text, flags=re.MULTILINE)
        return {"cell_type": "markdown", "id": f"cell-{index}", "metadata": {}, "source": text}
    return {
        "cell_type": "code", "execution_count": None, "id": f"cell-{index}", "metadata": {},
        "outputs": [], "source": text,
    }  # fmt: skip


if __name__ == "__main__":
    for path in sorted(EXAMPLES.glob("*.py")):
        path.with_suffix(".ipynb").write_text(notebook_of(path.read_text()))
        print(path.with_suffix(".ipynb"))
