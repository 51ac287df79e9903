"""Figures as small PNG files."""

import io
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from spectral_engine.checkpoints.atomic import replacing_file

#: Of the palette: lines and markers are of a few colours each, with shades at their edges.
COLOURS = 64


def save(figure: Figure, path: Path, dpi: int = 80) -> None:
    """Write a figure in a palette of `COLOURS`, a third of the bytes of all colours."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi)
    with replacing_file(path, force=True) as file:
        file.write(in_palette(drawn.getvalue()))


def in_palette(png: bytes) -> bytes:
    """A PNG, encoded again with `COLOURS` of its colours."""
    out = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        few = image.convert("RGB").quantize(
            COLOURS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE
        )
        few.save(out, format="PNG", optimize=True)
    return out.getvalue()
