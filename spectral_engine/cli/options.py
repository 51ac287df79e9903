"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Targets = Annotated[
    list[str] | None, typer.Option(help="only these: globs or 're:...'; repeatable")
]
Ignore = Annotated[list[str] | None, typer.Option(help="not these: globs or 're:...'; repeatable")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON for machines")]

#: What Matplotlib writes, by the endings of names.
_IMAGES = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".eps", ".ps")


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
