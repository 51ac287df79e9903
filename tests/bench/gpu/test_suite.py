"""What `make gpu` runs: its steps in Triton's interpreter, its verdicts, and no device at all."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.gpu import suite as gpu_suite
from bench.gpu import timing as gpu_timing

ROOT = Path(__file__).parents[3]
SUITE = ROOT / "bench" / "gpu" / "suite.py"
#: Runs one check after making row_l1 of the GPU backend wrong in one bit of one row.
BROKEN = """
import os, sys
os.environ["TRITON_INTERPRET"] = "1"
from bench.gpu import suite as gpu_suite
from spectral_kernels.backends.gpu.backend import GPUBackend
right = GPUBackend.row_l1
def wrong(self, A):
    sums = right(self, A)
    sums.view("u4")[-1] ^= 1
    return sums
GPUBackend.row_l1 = wrong
sys.exit(gpu_suite.main(["--dry-run", "--parts", "checks", "--only", "row_l1", *sys.argv[1:]]))
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in the root, with the paths that `make gpu` gives it."""
    settings = os.environ | {"PYTHONPATH": os.pathsep.join([".", "kernels"])}
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=ROOT, env=settings, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_dry_run(tmp_path: Path) -> None:
    """A step of the suite that no longer fits the kernels, a kernel that is not checked, a row
    that lacks its figures, a table that is not last.
    """
    done = run(str(SUITE), "--dry-run", "--output", str(tmp_path / "new" / "gpu.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "new" / "gpu.json").read_text())
    assert result["dry_run"] is True
    assert result["environment"]["torch"] == torch.__version__
    assert {row["result"] for row in result["checks"]} == {""}
    checked = " ".join(row["check"] for row in result["checks"])
    # count_between runs under all_finite and tie_stop.
    for kernel in (
        "sample", "keep_largest", "histogram", "refine", "all_finite", "tie_stop", "score_bits",
        "row_l1", "row_threshold", "keep_largest_of", "sample_of", "packing", "masked_product",
        "product float64", "product 2:4 bfloat16",
    ):  # fmt: skip
        assert kernel in checked
    (svd,), (model,) = result["svd"], result["model"]
    assert set(svd["ms"]) == {"torch", "svd_lowrank", "svdvals"}
    assert svd["error"]["torch"] < 1e-3
    assert set(model["ms"]) == {"magnitude", "randomized", "principal", "svd"}
    assert len(result["product"]) == 12
    assert all(set(row["ms"]) == {"packed", "cublas"} for row in result["product"])
    assert len(result["speed"]) == 26
    for row in result["speed"]:
        assert "said" not in row, row
        assert row["share"] == pytest.approx(
            row["bytes"] / (2 * 64 * 64 * getattr(torch, row["dtype"]).itemsize)
            / row["ratio_copy"]
        )  # fmt: skip
    assert done.stdout.splitlines()[-1].startswith("magnitude_rows")
    assert "DRY RUN" in done.stdout


def test_a_wrong_bit_fails(tmp_path: Path) -> None:
    """A suite that passes whatever the kernels do."""
    done = run("-c", BROKEN, "--output", str(tmp_path / "gpu.json"))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "row_l1 float32 at 5 x 85: 1 of 5 differ, first at (4,)" in done.stdout
    assert "checks: 0 of 4" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run without a device that succeeds, or leaves a file behind."""
    assert gpu_suite.main(["--output", str(tmp_path / "gpu.json")]) == 2
    assert "no CUDA device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_make_without_a_device() -> None:
    """A target that makes a virtual environment, or is green where nothing was run."""
    done = subprocess.run(
        ["make", "gpu", f"PYTHON={sys.executable}", "VENV=/nonexistent"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "no CUDA device" in done.stderr
    assert "make gpu PYTHON=" in done.stderr


@pytest.mark.parametrize(
    ("output", "errors", "said"),
    [
        ("========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n", 0, ""),
        (
            "========= COMPUTE-SANITIZER\n========= Invalid __global__ read of size 4 bytes\n"
            "========= ERROR SUMMARY: 3 errors\n", 3, "Invalid __global__ read of size 4 bytes",
        ),
        (
            "========= COMPUTE-SANITIZER\n========= RACECHECK SUMMARY: 0 hazards displayed "
            "(0 errors, 0 warnings)\n", 0, "",
        ),
        (
            "========= Error: Device not supported\n========= ERROR SUMMARY: 1 error\n",
            None, "Error: Device not supported",
        ),
        ("python: not found\n", None, "python: not found"),
    ],
)  # fmt: skip
def test_sanitizer_summary(output: str, errors: int | None, said: str) -> None:
    """Errors passed over; a tool that could not run taken for one that found nothing."""
    assert gpu_suite.sanitizer_summary(output) == {"errors": errors, "said": said}


def test_verdict() -> None:
    """A check that was left out, or an error under the sanitizer, that changes nothing."""
    good: dict[str, Any] = {
        "checks": [{"result": ""}], "sanitizer": [{"errors": 0}, {"errors": None}], "speed": [],
    }  # fmt: skip
    assert gpu_suite.passed(good)
    assert not gpu_suite.passed(good | {"checks": [{"result": "left out: out of time"}]})
    assert not gpu_suite.passed(good | {"sanitizer": [{"errors": 2}]})


def test_ratio_is_of_pairs() -> None:
    """A ratio of medians, which a slow spell of the device would show in."""
    times = {"own": [1.0, 8.0, 6.0], "other": [1.0, 2.0, 2.0]}
    assert gpu_timing.ratio(times, "own", "other") == np.median([1.0, 4.0, 3.0])
