"""Options that several commands share."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from spectral_engine.pages.report import Report

Targets = Annotated[
    list[str] | None, typer.Option(help="only these: globs or 're:...'; repeatable")
]
Ignore = Annotated[list[str] | None, typer.Option(help="not these: globs or 're:...'; repeatable")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON for machines")]
ReportFile = Annotated[
    Path | None,
    typer.Option("--report", metavar="FILE", help="write a page for the browser, FILE.html"),
]
ModelCard = Annotated[
    bool, typer.Option("--model-card", help="say in OUT/README.md what was done to the weights")
]

#: What Matplotlib writes, by the endings of names.
_IMAGES = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".eps", ".ps")


def size_of(name: str, text: str) -> int:
    """Bytes, from a number with or without K, M, G or T, of which each is 1000 of the one before.

    Raises:
        ValueError: names the option, what was expected and what came.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)B?", text.strip(), re.IGNORECASE)
    if found is None or float(found[1]) == 0:
        raise ValueError(f"{name}: expected a size such as 2G or 500M; got {text!r}")
    return int(float(found[1]) * 1000 ** " KMGT".index(found[2].upper() or " "))


def require_writable(path: Path, *, image: bool = False) -> None:
    """Refuse a file that cannot be written at the end, before the work begins.

    Raises:
        FileNotFoundError: its folder is missing.
        ValueError: `image`, and the name has the ending of no image.
    """
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path}: expected a folder to write to; {path.parent} is none")
    if image and path.suffix.lower() not in _IMAGES:
        raise ValueError(f"{path}: expected a name that ends in {', '.join(_IMAGES)}")


def require_card(wanted: bool, source: Path) -> None:
    """Refuse a model card for what is no folder, before the work begins.

    Raises:
        ValueError: a file, which has no README.
    """
    if wanted and not source.is_dir():
        raise ValueError(f"model_card: expected a folder IN; got {source}")


def require_report(path: Path | None) -> None:
    """Refuse a page that could not be written at the end, before the work begins.

    Raises:
        ValueError, OSError: see `require_page`.
    """
    if path is not None:
        from spectral_engine.pages.report import require_page

        try:
            require_page(path)
        except ValueError as error:
            raise ValueError(str(error).replace("path", "report", 1)) from error


def show(report: "Report", page: Path | None, as_json: bool, **more: Any) -> None:
    """Print a report as a table or, with `more`, as JSON, and write its page if one is wanted."""
    from spectral_engine._util.text import WIDTH

    if page is not None:
        report.to_html(page)
    if as_json:
        typer.echo(json.dumps({**more, **report.to_dict()}))
        return
    console = Console()
    if not console.is_terminal:  # a log, where a row should stay a line
        console.width = max(console.width, WIDTH)
    console.print(report)
    if page is not None:
        typer.echo(f"wrote {page}")
