"""Compressing a file and decompressing it beside copying it.

    python bench/files.py                       256 MB of each dtype, in the system's folder
    python bench/files.py --megabytes 64 --folder /var/tmp

All take turns in one process (`timing`), and everything written is on the disk when a turn ends. A
copy is of the dense file, by `shutil.copyfileobj`, 4 MiB at a time. The second table is in
processor time, which other load on the machine changes less.
"""

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

import spectral_engine as se
from bench.speed.timing import Contender, interleave, ratio

SPARSITIES = (0.5, 0.7, 0.9, 0.97)
DTYPES = ("float32", "bfloat16")
CHUNK = 1 << 22
SIDE = 4096


def dense_file(path: Path, megabytes: int, sparsity: float, dtype: str) -> int:
    """Write matrices of 4,096 columns; their bytes."""
    kind = getattr(torch, dtype)
    torch.manual_seed(0)
    tensors, rows = {}, max(64, megabytes * 2**20 // (4 * SIDE * kind.itemsize))
    for i in range(4):
        weight = torch.randn(rows, SIDE).masked_fill_(torch.rand(rows, SIDE) < sparsity, 0.0)
        tensors[f"{i}.weight"] = weight.to(kind)
    save_file(tensors, path)
    return sum(tensor.nbytes for tensor in tensors.values())


def copy(source: Path, target: Path) -> None:
    """Copy a file to the disk."""
    with open(source, "rb") as reader, open(target, "wb") as writer:
        shutil.copyfileobj(reader, writer, CHUNK)
        writer.flush()
        os.fsync(writer.fileno())


def contenders(folder: Path) -> dict[str, Contender]:
    """What takes turns on `dense` and `small` of a folder."""
    dense, small = folder / "dense.safetensors", folder / "small.safetensors"
    out = folder / "out.safetensors"
    return {
        "copy": lambda: copy(dense, out),
        "compress": lambda: se.compress_file(dense, small, force=True, progress=False),
        "decompress": lambda: se.decompress_file(small, out, force=True, progress=False),
    }


def main(
    megabytes: Annotated[int, typer.Option(min=1, help="of the dense file")] = 256,
    folder: Annotated[Path | None, typer.Option(help="where to write")] = None,
) -> None:
    """Print a line for each dtype and sparsity."""
    for clock, called in ((time.perf_counter, "time"), (time.process_time, "processor time")):
        names = ("copy ms", "compress / copy", "decompress / copy")
        table = Table("dtype", "zeros", *names, title=called)
        for dtype in DTYPES:
            for sparsity in SPARSITIES:
                with tempfile.TemporaryDirectory(dir=folder) as made:
                    dense_file(Path(made) / "dense.safetensors", megabytes, sparsity, dtype)
                    times = interleave(contenders(Path(made)), clock)
                cells = [
                    f"{1e3 * min(times['copy']):.0f}",
                    *(f"{ratio(times, name, 'copy'):.2f}" for name in ("compress", "decompress")),
                ]
                table.add_row(dtype, f"{sparsity:.0%}", *cells)
        Console().print(table)


if __name__ == "__main__":
    typer.run(main)
