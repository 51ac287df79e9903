"""What all reports can do: be printed, saved, opened in a browser and shown in a notebook."""

import json
import os
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from spectral_engine._util.checks import boolean, file_path
from spectral_engine._util.text import as_text, shown_width
from spectral_engine.checkpoints.atomic import replacing_file
from spectral_engine.pages.sheet import GENERATOR, Sheet
from spectral_engine.pages.terminal import lines_of, table_of

_ENDINGS = (".html", ".htm")


class Shown:
    """What can be looked at: it says what it holds in `sheet()`, and in a few words."""

    def sheet(self) -> Sheet:
        """What there is to see, for a table or a page."""
        raise NotImplementedError

    def summary(self) -> str:
        """All in a few words, for `repr`."""
        raise NotImplementedError

    def to_html(self, path: str | os.PathLike[str], *, force: bool = False) -> Path:
        """Write one page that opens in any browser: nothing is loaded from elsewhere.

        Args:
            path: with the ending .html or .htm. An earlier page of this kind is replaced.
            force: replace whatever file is there.

        Returns:
            The path.

        Raises:
            ValueError: another ending.
            FileExistsError: a file that is no such page is there, and `force` is False.
        """
        from spectral_engine.pages.html import page  # noqa: PLC0415  (jinja2)

        target = require_page(path, force=force)
        with replacing_file(target, force=True) as file:
            file.write(page(self.sheet()).encode("utf-8", "replace"))
        return target

    def table(self) -> Table:
        """The rows for rich."""
        return table_of(self.sheet())

    def _repr_html_(self) -> str:
        from spectral_engine.pages.html import fragment  # noqa: PLC0415  (jinja2)

        return fragment(self.sheet())

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        sheet = self.sheet()
        yield table_of(sheet, console, options.max_width)
        yield from lines_of(sheet)

    def __str__(self) -> str:
        return as_text(shown_width(), self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.summary()})"


class Report(Shown):
    """What was done or found, which can be saved too."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        raise NotImplementedError

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write JSON, whole or not at all.

        Args:
            path: the file.
            force: replace the file if it exists.

        Raises:
            FileExistsError: the file exists, and `force` is False.
        """
        with replacing_file(file_path("path", path), force=boolean("force", force)) as file:
            file.write((json.dumps(self.to_dict(), indent=1) + "\n").encode())


def require_page(path: str | os.PathLike[str], *, force: bool = False) -> Path:
    """The path of a page to write, or to write over.

    Raises:
        ValueError: another ending than .html or .htm.
        FileNotFoundError: the folder is missing.
        FileExistsError: a file that is no page of ours is there, and `force` is False.
    """
    target = file_path("path", path)
    boolean("force", force)
    if target.suffix.lower() not in _ENDINGS:
        raise ValueError(f"path: expected a name that ends in .html; got {str(path)!r}")
    if not target.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path}: expected a folder to write to; {target.parent} is none")
    if target.exists() and not force:
        with target.open("rb") as file:
            if GENERATOR.encode() not in file.read(1000):
                raise FileExistsError(f"{target} exists already, and is no report; choose another")
    return target
