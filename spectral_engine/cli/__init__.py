"""The command line `spectral-engine`; each command is a module beside this one.

Commands import what they need when they run, so that help and a shell's completion answer at once:
PyTorch takes seconds.
"""

import sys

import typer
from rich.console import Console

from spectral_engine.cli.compare import compare
from spectral_engine.cli.compress import compress, decompress
from spectral_engine.cli.demo import demo
from spectral_engine.cli.profile import profile
from spectral_engine.cli.prune import prune
from spectral_engine.cli.reproduce import reproduce
from spectral_engine.cli.spectrum import spectrum

app = typer.Typer(
    name="spectral-engine",
    help="Spectrum-preserving sparsification of neural networks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(demo)
app.command()(prune)
app.command()(spectrum)
app.command()(compare)
app.command()(compress)
app.command()(decompress)
app.command()(profile)
app.command()(reproduce)


def _show_version(wanted: bool) -> None:
    if wanted:
        from spectral_engine import __version__

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
    """Run the command line; a mistake of the user is one line on stderr and exit status 1."""
    try:
        app(prog_name="spectral-engine")  # as completion calls it, however it was started
    except (ValueError, TypeError, OSError, RuntimeError, ModuleNotFoundError) as error:
        said = f"error: {_message(error)}"
        Console(stderr=True).print(said, style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


def _message(error: Exception) -> str:
    """What an error says, on one line."""
    said = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        said = f"{error.filename}: {error.strerror}"
    return " ".join(said.split())
