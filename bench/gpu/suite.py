"""Check every Triton kernel on a CUDA device, then time it: what `make gpu` runs.

    python bench/gpu/suite.py [--output FILE]          on a CUDA device; under 8 minutes
    python bench/gpu/suite.py --dry-run                the same steps, tiny, in Triton's interpreter
    python bench/gpu/suite.py --parts checks --only row_l1

Parts, in this order, each within its own time:

    checks     every kernel against the oracle, bit for bit
    sanitizer  the same, small, under compute-sanitizer (memcheck, racecheck) where it is installed
    svd        batched truncated SVDs beside torch's own
    model      all linear layers of a 7B model
    product    products with packed matrices beside cuBLAS
    speed      shares of the device's copy bandwidth, speed-ups over PyTorch and torch.compile

Exit status: 0 where every check that was run passed and none was left out; 1 where one did not; 2
where torch finds no CUDA device. A speed target that is missed is shown, and changes no status.
"""

import argparse
import json
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Any

import torch

PARTS = ("checks", "sanitizer", "svd", "model", "product", "speed")
PACKAGES = ("torch", "triton", "numpy", "numba", "cupy-cuda13x", "cupy-cuda12x")
#: The most seconds of a part, the sanitizer's for each tool; together under 8 minutes.
#: A cold start compiles some 200 kernels for the checks, and those of the CPU to compare with.
SECONDS = {
    "checks": 200.0, "sanitizer": 40.0, "svd": 40.0, "model": 30.0, "product": 25.0, "speed": 100.0,
}  # fmt: skip
TOOLS = ("memcheck", "racecheck")
#: (m, n): one whose rows are whole vectors, one whose rows are not, both many tiles.
SHAPES = ((1531, 2048), (517, 1003))
#: For the sanitizer: what was compiled for the second of these is compiled already.
SMALL_SHAPES = ((19, 1003),)
DRY_SHAPES = ((5, 85),)  # the interpreter pays for rows and rounds
SIZES = (8192, 16384)
#: (count, side, rank) of batches of SVDs; the first has a target.
SVD_SIZES = ((32, 4096, 64), (64, 1024, 64))
SVD_TARGETS = {"speedup_svdvals": 30.0, "speedup_svd_lowrank": 3.0}
LAYOUT = "{:<17}{:>6}{:>10}{:>9}{:>7}{:>7}{:>8}{:>9}{:>10}"
COLUMNS = "operation", "size", "dtype", "ms", "GB/s", "share", "/copy", "PyTorch/", "compiled/"
NO_DEVICE = (
    "no CUDA device: torch {torch} finds none. On a machine with one, name an interpreter whose "
    "torch is built for CUDA: make gpu PYTHON=python3"
)


def environment(device: str) -> dict[str, Any]:
    """Device, driver and versions."""
    found: dict[str, Any] = {"python": platform.python_version(), "device": "Triton's interpreter"}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    if device != "cpu":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda or torch.version.hip,
            "driver": driver(),
        }
    return found


def driver() -> str | None:
    """The version of the device's driver, None where there is no nvidia-smi to ask."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    ask = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(ask, capture_output=True, text=True, check=False)
    return done.stdout.partition("\n")[0].strip() or None


def run_checks(
    shapes: tuple[tuple[int, int], ...], device: str, only: str, seconds: float
) -> list[dict[str, Any]]:
    """A row for each check; "result" is empty where it passed."""
    # They compile nothing on import, but read whether the interpreter is wanted.
    from spectral_kernels.backends.gpu.backend import GPU, GPUBackend  # noqa: PLC0415

    from bench.gpu import product  # noqa: PLC0415
    from bench.gpu.checks import checks  # noqa: PLC0415

    # The interpreter pays for tiles, not for entries.
    backend = GPUBackend(entries=2048, rows=16) if device == "cpu" else GPU
    deadline, found = time.monotonic() + seconds, []
    # In turns, so that what time does not allow is left out of every shape alike.
    of_each = [
        [
            (shape, *one)
            for one in chain(checks(*shape, device, backend), product.checks(*shape, device))
        ]
        for shape in shapes
    ]
    for (m, n), name, check in chain.from_iterable(zip(*of_each, strict=True)):
        if only not in name:
            continue
        result = "left out: out of time"
        if time.monotonic() < deadline:
            try:
                result = check()
            except Exception as error:  # a wrong kernel may raise anything
                result = f"{type(error).__name__}: {error}"
        found.append({"check": name, "shape": [m, n], "result": result})
        if result:
            print(f"{name} at {m} x {n}: {result}", flush=True)
    return found


def run_sanitizer(seconds: float) -> list[dict[str, Any]]:
    """A row for each tool; "errors" is None where it could not be run to its end."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return [{"tool": name, "errors": None, "said": "not installed"} for name in TOOLS]
    settings = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # each array its own bounds
    found = []
    for name in TOOLS:
        # Errors of calls that libraries make to find out are no errors of a kernel.
        calls = ["--report-api-errors", "no"] if name == "memcheck" else []
        command = [
            tool, "--tool", name, *calls, "--target-processes", "application-only",
            sys.executable, __file__, "--parts", "checks", "--small", "--output", os.devnull,
        ]  # fmt: skip
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=settings,
            start_new_session=True,
        ) as process:  # fmt: skip
            try:
                said = sanitizer_summary(process.communicate(timeout=seconds)[0])
                found.append({"tool": name, **said})
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # and what it watches
                found.append({"tool": name, "errors": None, "said": f"not done in {seconds:g} s"})
    return found


def sanitizer_summary(output: str) -> dict[str, Any]:
    """How many errors compute-sanitizer counted, and what it said of the first."""
    lines = [line.lstrip("= ").strip() for line in output.splitlines() if line.startswith("=====")]
    refused = next((line for line in lines if "not supported" in line), None)
    if refused is not None:
        return {"errors": None, "said": refused}
    total = re.search(r"(?:ERROR SUMMARY|RACECHECK SUMMARY): (\d+)", output)
    if total is None:
        return {"errors": None, "said": (output.strip().splitlines() or ["it said nothing"])[-1]}
    spoken = [line for line in lines if line and not line.startswith("COMPUTE-SANITIZER")]
    return {"errors": int(total[1]), "said": spoken[0] if int(total[1]) else ""}


def speed_line(row: dict[str, Any]) -> str:
    """A line of the table for a row of the speed suite."""
    cells = [row["operation"], row["shape"][0], row["dtype"]]
    if "said" in row:
        return f"{LAYOUT.format(*cells, *[''] * 6).rstrip()}  {row['said']}"
    speedups = (row.get(f"speedup_{name}") for name in ("pytorch", "compiled"))
    cells += [f"{row['ms']['triton']:.3f}", f"{row['gb_per_s']:.0f}"]
    cells += [f"{row['share']:.2f}", f"{row['ratio_copy']:.3g}"]
    return LAYOUT.format(*cells, *("" if found is None else f"{found:.1f}" for found in speedups))


def target_line(target: Any, row: dict[str, Any]) -> str:
    """A line that says whether a row reaches a target."""
    sign = "<=" if target.at_most else ">="
    return (
        f"{'reached' if target.reached(row) else 'NOT reached'}: {row['operation']} "
        f"{row['dtype']} {row['shape'][0]}: {target.field} {row[target.field]:.2f} "
        f"{sign} {target.bound:g}"
    )


def bound_lines(result: dict[str, Any]) -> list[str]:
    """Lines that say whether SVDs and the model reach their targets."""
    from bench.gpu import model as gpu_model  # noqa: PLC0415 (as in `run_checks`)

    found = []
    for row in result["svd"][:1]:
        for field, bound in SVD_TARGETS.items():
            if field in row and row["shape"][:2] == list(SVD_SIZES[0][:2]):
                verdict = "reached" if row[field] >= bound else "NOT reached"
                found.append(f"{verdict}: svd: {field} {row[field]:.1f} >= {bound:g}")
    for row in result["model"]:
        for method, bound in gpu_model.TARGETS.items():
            if "ms" in row:
                verdict = "reached" if row["ms"][method] <= bound else "NOT reached"
                found.append(f"{verdict}: 7B {method}: {row['ms'][method]:.1f} ms <= {bound:g}")
    return found


def table(result: dict[str, Any]) -> str:
    """The short table that is printed last."""
    from bench.gpu import model as gpu_model  # noqa: PLC0415 (as in `run_checks`)
    from bench.gpu import product as gpu_product  # noqa: PLC0415
    from bench.gpu import svd as gpu_svd  # noqa: PLC0415
    from bench.gpu.speed import TARGETS  # noqa: PLC0415

    lines = [f"{result['environment']['device']}, driver {result['environment'].get('driver')}"]
    if result["dry_run"]:
        lines.append("DRY RUN in the interpreter: no time below means anything")
    if found := result["checks"]:
        passed = sum(not row["result"] for row in found)
        lines.append(f"checks: {passed} of {len(found)} bit for bit equal to the oracle")
    for row in result["sanitizer"]:
        verdict = "not run" if row["errors"] is None else f"{row['errors']} errors"
        lines.append(f"{row['tool']}: {verdict}{', ' if row['said'] else ''}{row['said']}")
    lines += [gpu_svd.line(row) for row in result["svd"]]
    lines += [gpu_model.line(row) for row in result["model"]]
    lines += [gpu_product.line(row) for row in result["product"]]
    if not result["dry_run"]:
        lines += bound_lines(result)
    if result["speed"]:
        lines.append(LAYOUT.format(*COLUMNS))
        lines += [speed_line(row) for row in result["speed"]]
        lines += [
            target_line(target, row)
            for target in TARGETS
            for row in result["speed"]
            if target.concerns(row) and not result["dry_run"]
        ]
    return "\n".join(lines)


def passed(result: dict[str, Any]) -> bool:
    """Whether no check failed or was left out, and no tool counted an error."""
    return not any(row["result"] for row in result["checks"]) and not any(
        row["errors"] for row in result["sanitizer"]
    )


def svd_size(text: str) -> tuple[int, int, int]:
    """(count, side, rank) of "32x4096x64"."""
    count, side, rank = (int(part) for part in text.split("x"))
    if count < 1 or side & (side - 1) or not 0 < rank <= side:
        raise ValueError
    return count, side, rank


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(".benchmarks/gpu.json"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument(
        "--svd-sizes", nargs="+", type=svd_size, default=SVD_SIZES, metavar="COUNTxSIDExRANK",
        help="batches of SVDs, with sides that are powers of two",
    )  # fmt: skip
    parser.add_argument("--only", default="", help="checks whose name holds this")
    parser.add_argument("--small", action="store_true", help="checks on one small matrix")
    parser.add_argument("--dry-run", action="store_true", help="tiny, in Triton's interpreter")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the parts, print the table, write the file; the exit status."""
    options = parse(arguments)
    if not options.dry_run and not torch.cuda.is_available():
        print(NO_DEVICE.format(torch=torch.__version__), file=sys.stderr)
        return 2
    if options.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports the kernels
        warnings.filterwarnings("ignore", "overflow", RuntimeWarning)  # NumPy's, for a device's inf
    device = "cpu" if options.dry_run else "cuda"
    result: dict[str, Any] = {
        "environment": environment(device), "dry_run": options.dry_run,
        **{part: [] for part in PARTS},
    }  # fmt: skip
    shapes = DRY_SHAPES if options.dry_run else SMALL_SHAPES if options.small else SHAPES
    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "checks": lambda: run_checks(shapes, device, options.only, SECONDS["checks"]),
        "sanitizer": lambda: [] if options.dry_run else run_sanitizer(SECONDS["sanitizer"]),
        "svd": lambda: run_svd(options, device),
        "model": lambda: run_model(options, device),
        "product": lambda: run_product(options, device),
        "speed": lambda: run_speed(options, device),
    }
    if options.output != Path(os.devnull):
        options.output.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    for part in PARTS:
        if part in options.parts:
            result[part] = parts[part]()
            result["seconds"] = time.monotonic() - start
            # After each: what is killed in the next one has lost no other.
            options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result))
    return 0 if passed(result) else 1


def run_svd(options: argparse.Namespace, device: str) -> list[dict[str, Any]]:
    """The rows of `svd`."""
    from bench.gpu import svd as gpu_svd  # noqa: PLC0415 (as in `run_checks`)

    sizes = ((2, 64, 4),) if options.dry_run else tuple(options.svd_sizes)
    return list(gpu_svd.rows(sizes, device, time.monotonic() + SECONDS["svd"]))


def run_model(options: argparse.Namespace, device: str) -> list[dict[str, Any]]:
    """The rows of `model`."""
    from bench.gpu import model as gpu_model  # noqa: PLC0415 (as in `run_checks`)

    smaller = {"shrink": 256, "rounds": 1, "group": 2} if options.dry_run else {}
    deadline = math.inf if options.dry_run else time.monotonic() + SECONDS["model"]
    return list(gpu_model.rows(device, deadline, **smaller))


def run_product(options: argparse.Namespace, device: str) -> list[dict[str, Any]]:
    """The rows of `product`."""
    from bench.gpu import product as gpu_product  # noqa: PLC0415 (as in `run_checks`)

    shapes = ((4, 64),) if options.dry_run else gpu_product.SHAPES
    rounds = 1 if options.dry_run else 15
    deadline = math.inf if options.dry_run else time.monotonic() + SECONDS["product"]
    return list(gpu_product.rows(shapes, device, deadline, rounds))


def run_speed(options: argparse.Namespace, device: str) -> list[dict[str, Any]]:
    """The rows of `speed`."""
    from bench.gpu import speed as gpu_speed  # noqa: PLC0415 (as in `run_checks`)

    sizes = (64,) if options.dry_run else tuple(options.sizes)
    rounds = 1 if options.dry_run else gpu_speed.ROUNDS
    deadline = time.monotonic() + SECONDS["speed"]
    return list(gpu_speed.rows(sizes, device, deadline, rounds))


if __name__ == "__main__":
    sys.exit(main())
