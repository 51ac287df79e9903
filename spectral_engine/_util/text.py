"""Tables as text, with names shown as they are."""

import io

from rich.console import Console, RenderableType
from rich.text import Text


def plain_text(text: str) -> Text:
    """Text as it is: names come out of files, and may look like markup or steer a terminal."""
    return Text("".join(char if char.isprintable() else "?" for char in text))


def as_text(width: int, *parts: RenderableType) -> str:
    """What a console of that width prints, one part after the other, without colours."""
    console = Console(file=io.StringIO(), width=width, highlight=False)
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    return captured.get().rstrip()
