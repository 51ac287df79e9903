"""Tables as text, with names shown as they are."""

import io
import re
import shutil
import sys

from rich.console import Console, RenderableType
from rich.text import Text

#: Off a terminal, and in a string: wide enough for a row of any table with a long name.
WIDTH = 160
_LEAST_WIDTH = 80


def printable(text: str) -> str:
    """Text that cannot steer a terminal: names come out of files."""
    return "".join(char if char.isprintable() else "?" for char in text)


def plain_text(text: str) -> Text:
    """Text as it is: names come out of files, and may look like markup or steer a terminal."""
    return Text(printable(text))


def natural(name: str) -> list[tuple[int, int, str]]:
    """What sorts names by the numbers in them.

    >>> sorted(["a.10", "a.2", "a.b"], key=natural)
    ['a.2', 'a.10', 'a.b']
    """
    parts = re.split(r"(\d+)", name)
    return [(0, int(x), x) if x.isdecimal() else (1, 0, x) for x in parts if x]


def shown_width() -> int:
    """The width of a terminal that standard output goes to, and `WIDTH` elsewhere."""
    if sys.stdout is not None and sys.stdout.isatty():
        return max(_LEAST_WIDTH, shutil.get_terminal_size().columns)
    return WIDTH


def as_text(width: int, *parts: RenderableType) -> str:
    """What a console of that width prints, one part after the other, without colours.

    Nothing of the surroundings shows: a notebook would be shown a box, and FORCE_COLOR would bring
    the codes of a terminal into a log.
    """
    console = Console(
        file=io.StringIO(), width=width, highlight=False, color_system=None, force_terminal=False,
        force_jupyter=False, legacy_windows=False,
    )  # fmt: skip
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()).strip("\n")
