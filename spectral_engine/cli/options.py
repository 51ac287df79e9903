"""Options that several commands share."""

from typing import Annotated

import typer

Targets = Annotated[
    list[str] | None, typer.Option(help="only these: globs or 're:...'; repeatable")
]
Ignore = Annotated[list[str] | None, typer.Option(help="not these: globs or 're:...'; repeatable")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON for machines")]
