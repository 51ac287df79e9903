"""`spectral-engine profile`."""

import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from spectral_engine.cli.names import DTYPES, METHODS, MODELS
from spectral_engine.cli.options import AsJson, require_writable
from spectral_engine.cli.scale import show_scale

if TYPE_CHECKING:
    from spectral_engine.profiling.records import Profile, ProfileCase
    from spectral_engine.profiling.sparse import SparseMeasurement

#: Narrower, the table would lose its columns.
TABLE_WIDTH = 120
#: What --sparse sweeps by default.
SPARSE_SHAPES, SPARSE_DENSITIES, SPARSE_SIDES = ["4096x4096"], [0.5, 0.3, 0.1], [1, 8]
#: Seen on two cores: 95 ms for a call that takes 2 ms without.
SPINNING = (
    "note: threads of OpenMP that spin while they wait take the cores from the kernels' own; "
    "set OMP_WAIT_POLICY=PASSIVE for figures of the kernels alone"
)


def profile(
    shape: Annotated[
        list[str] | None, typer.Option(help="rows x columns, as 4096x11008; repeatable")
    ] = None,
    dtype: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(DTYPES)}; repeatable")
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(METHODS)}; repeatable")
    ] = None,
    rank: Annotated[
        list[int] | None, typer.Option(help="of principal and aligned scores; repeatable")
    ] = None,
    density: Annotated[
        list[float] | None, typer.Option(help="fraction kept, in (0, 1]; repeatable")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help=f"the layers of {', '.join(MODELS)}, not --shape; with --scale also a config.json"
        ),
    ] = None,
    blocks: Annotated[
        int | None, typer.Option(help="with --model, at most this many of repeated blocks")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    repeats: Annotated[
        int | None, typer.Option(help="timed calls of each case, by default 5; not of --model")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="write the figures as JSON")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="draw a roofline to this image file")] = None,
    trace_file: Annotated[
        Path | None, typer.Option("--trace", help="write a torch.profiler trace of one call each")
    ] = None,
    sparse: Annotated[
        bool, typer.Option("--sparse", help="products with packed matrices beside the dense ones")
    ] = False,
    sides: Annotated[
        list[int] | None, typer.Option(help="with --sparse, right-hand sides; repeatable")
    ] = None,
    scale: Annotated[
        bool,
        typer.Option(
            "--scale",
            help="memory, time and traffic of a calibrated pruning on 1, 8 and 64 processes, "
            "computed from rates measured here; of --model, or of llamas",
        ),
    ] = False,
    samples: Annotated[int, typer.Option(min=1, help="with --scale, of the calibration")] = 128,
    length: Annotated[int, typer.Option(min=1, help="with --scale, tokens of each")] = 2048,
    as_json: AsJson = False,
) -> None:
    """Time, bandwidth and memory of sparsification on this device, beside a copy of the matrix."""
    from spectral_engine._util.checks import number, one_of
    from spectral_engine.checkpoints.atomic import replacing_file
    from spectral_engine.profiling import shapes
    from spectral_engine.profiling.device import pick_device
    from spectral_engine.profiling.run import profile_cases, profile_model, trace
    from spectral_engine.profiling.sparse import profile_sparse

    if scale:
        given: dict[str, object] = {
            "shape": shape, "dtype": dtype, "method": method, "rank": rank, "density": density,
            "blocks": blocks, "repeats": repeats, "plot": plot, "trace": trace_file,
            "sparse": sparse, "sides": sides, "output": output,
        }  # fmt: skip
        if wrong := [f"--{name}" for name, value in given.items() if value]:
            raise ValueError(f"scale: expected none of {', '.join(given)}; got {wrong[0]}")
        show_scale(model, samples, length, as_json)
        return
    chosen = pick_device(device)
    if sparse:
        without: dict[str, object] = {
            "method": method, "rank": rank, "model": model, "blocks": blocks, "plot": plot,
            "trace": trace_file,
        }  # fmt: skip
        if wrong := [f"--{name}" for name, value in without.items() if value]:
            raise ValueError(f"sparse: expected none of {', '.join(without)}; got {wrong[0]}")
        if output is not None:
            require_writable(output)
        rows = profile_sparse(
            [sizes(one) for one in shape or SPARSE_SHAPES],
            dtype or ["float32"],
            [1.0 - one for one in density or SPARSE_DENSITIES],
            sides or SPARSE_SIDES,
            chosen,
            5 if repeats is None else repeats,
        )
        _show_sparse(rows, output, as_json)
        return
    if sides:
        raise ValueError(f"sides: only --sparse has right-hand sides; got {sides}")
    kept = density or [0.1]
    for one in kept:
        number("density", one, above=0.0, most=1.0, meaning="the fraction kept,")
    methods = method or ["magnitude", "randomized", "principal"]
    if model is not None:
        one_of("model", model, shapes.MODELS)
        many = [given for given in (shape, dtype, method, rank, density) if given]
        if shape or trace_file or repeats is not None or any(len(given) > 1 for given in many):
            raise ValueError(
                "model: expected no --shape, --trace or --repeats and one --dtype, --method, "
                "--rank and --density at most beside it"
            )
    elif blocks is not None:
        raise ValueError(f"blocks: only --model has blocks; got {blocks}")
    for written in filter(None, (output, plot, trace_file)):
        require_writable(written, image=written is plot)
    errors = Console(stderr=True)
    if chosen == "cpu" and "OMP_WAIT_POLICY" not in os.environ:
        errors.print(SPINNING, soft_wrap=True, highlight=False)
    if model is not None:
        found = profile_model(
            shapes.MODELS[model],
            methods[0],
            1.0 - kept[0],
            chosen,
            dtype=dtype[0] if dtype else None,
            rank=rank[0] if rank else None,
            blocks=blocks,
        )
    else:
        cases = sweep(shape or ["2048x2048"], dtype or ["float32"], methods, rank, kept)
        found = profile_cases(cases, chosen, 5 if repeats is None else repeats)
        if trace_file is not None:
            trace(cases, chosen, trace_file)
    if output is not None:
        with replacing_file(output, force=True) as file:
            file.write((json.dumps(found.to_dict(), indent=1) + "\n").encode())
    if plot is not None:
        from spectral_engine.profiling.roofline import plot_roofline

        plot_roofline(found, plot)
    if as_json:
        typer.echo(json.dumps(found.to_dict()))
        return
    console = Console()
    console.width = max(console.width, TABLE_WIDTH)
    console.print(table(found))
    for path in (output, plot, trace_file):
        if path is not None:
            typer.echo(f"wrote {path}")


def _show_sparse(rows: "list[SparseMeasurement]", output: Path | None, as_json: bool) -> None:
    from spectral_engine.checkpoints.atomic import replacing_file

    text = json.dumps([row.to_dict() for row in rows], indent=None if as_json else 1)
    if output is not None:
        with replacing_file(output, force=True) as file:
            file.write((text + "\n").encode())
    if as_json:
        typer.echo(text)
        return
    shown = Table(title="packed beside dense", title_justify="left")
    for name in ("matrix", "dtype", "density"):
        shown.add_column(name)
    for name in ("sides", "us", "dense us", "faster", "bytes"):
        shown.add_column(name, justify="right")
    for row in rows:
        shown.add_row(
            "x".join(map(str, row.shape)),
            row.dtype,
            f"{1.0 - row.sparsity:g}",
            str(row.sides),
            f"{1e6 * row.seconds:.1f}",
            f"{1e6 * row.dense_seconds:.1f}",
            f"{row.speedup:.2f} x",
            f"{row.bytes / row.dense_bytes:.1%}",
        )
    Console().print(shown)
    if output is not None:
        typer.echo(f"wrote {output}")


def sweep(
    shapes: list[str],
    dtypes: list[str],
    methods: list[str],
    ranks: list[int] | None,
    densities: list[float],
) -> "list[ProfileCase]":
    """Every combination of these as a case; ranks only where the method has one."""
    from spectral_engine.profiling.records import ProfileCase
    from spectral_engine.recipe import methods as known

    cases = []
    for shape, dtype, method, density in itertools.product(shapes, dtypes, methods, densities):
        needs_rank = known.METHODS.get(method) in (known.Principal, known.Aligned)
        some: Sequence[int | None] = ranks if ranks and needs_rank else [None]
        for rank in some:
            cases.append(ProfileCase(sizes(shape), dtype, method, 1.0 - density, rank))
    return cases


def sizes(shape: str) -> tuple[int, ...]:
    """The sizes that a shape is written as: "4096x11008" is (4096, 11008).

    Raises:
        ValueError: it is written otherwise.
    """
    parts = shape.lower().split("x")
    if len(parts) < 2 or not all(part.isdecimal() for part in parts):
        raise ValueError(f"shape: expected sizes as in 4096x11008; got {shape!r}")
    return tuple(int(part) for part in parts)


def table(profile: "Profile") -> Table:
    """A line for each measurement, and the time of all."""
    calls = sum(row.calls for row in profile.rows)
    caption = f"{calls} calls, {profile.total_seconds:.3g} s"
    if profile.model is not None:
        caption += f"; in memory at a time: {profile.resident} of {profile.model}"
    shown = Table(title=escape(profile.device), caption=caption, title_justify="left")
    shown.add_column("matrix")
    for name in ("dtype", "method", "density", "rank"):
        shown.add_column(name)
    for name in ("calls", "ms", "SVD ms", "GB/s", "of copy", "peak MiB"):
        shown.add_column(name, justify="right")
    for row in profile.rows:
        case = row.case
        shown.add_row(
            " ".join(filter(None, (case.label, "x".join(map(str, case.shape))))),
            case.dtype,
            case.method,
            f"{1.0 - case.sparsity:g}",
            "" if row.rank is None else str(row.rank),
            str(row.calls),
            f"{1e3 * row.seconds:.3g}",
            f"{1e3 * row.svd_seconds:.3g}" if row.rank is not None else "",
            f"{row.gb_per_s:.1f}",
            f"{row.share:.0%}",
            "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.1f}",
        )
    return shown
