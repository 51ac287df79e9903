"""The documentation site: Sphinx, with pages in MyST Markdown; `make docs` builds it."""

import re
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "kernels")]

from spectral_engine import __version__  # noqa: E402

project = "spectral-engine"
author = "the spectral-engine authors"
copyright = author
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
exclude_patterns = ["examples/*.ipynb"]
suppress_warnings = ["myst.header"]  # a page may be only a part of another

html_theme = "furo"
html_title = f"spectral-engine {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
python_maximum_signature_line_length = 70
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

#: Text in single backticks, or marks that reStructuredText would take for its own.
_MARKS = re.compile(r"``[^`]+``|`([^`]+)`(\w?)|([|*\\])|(?<=\w)(_)(?!\w)")
#: A field of a class, where its docstring tells of it: "name, other: what they are".
_FIELD = re.compile(r"^([a-z_]\w*(?:, [a-z_]\w*)*): (?=\S)")


def _as_rst(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings, plain text with backticks, become reStructuredText; examples stay."""
    found: list[str] = []
    example = field = False
    for line in lines:
        example = line.lstrip().startswith(">>>") or (example and bool(line.strip()))
        text = line if example else _MARKS.sub(_mark, line)
        if not line.strip():
            field = False
        elif what == "class" and not example and _FIELD.match(line):
            if not field:
                found.append("")
            field = True
            text = _FIELD.sub(r":\1: ", text)
        elif field:
            text = f"    {text}"
        found.append(text)
    lines[:] = found


def _mark(found: re.Match[str]) -> str:
    if found[1] is not None:
        return f"``{found[1]}``" + (f"\\ {found[2]}" if found[2] else "")
    return f"\\{found[0]}" if found[3] or found[4] else found[0]


def setup(app: Any) -> None:
    """Before napoleon reads the sections."""
    app.connect("autodoc-process-docstring", _as_rst, priority=100)
