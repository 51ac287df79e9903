"""The command line `spectral-engine`; each command is a module beside this one."""

import sys

import typer
from rich.console import Console

from spectral_engine import __version__
from spectral_engine.cli.demo import demo
from spectral_engine.cli.prune import prune

app = typer.Typer(
    name="spectral-engine",
    help="Spectrum-preserving sparsification of neural networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(demo)
app.command()(prune)


def _show_version(wanted: bool) -> None:
    if wanted:
        Console().print(__version__, highlight=False)
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Spectrum-preserving sparsification of neural networks."""


def main() -> None:
    """Run the command line; a mistake of the user's is one line on stderr and exit status 1."""
    try:
        app()
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False)
        sys.exit(1)
