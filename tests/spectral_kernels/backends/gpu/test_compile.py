"""The Triton kernels compiled for GPUs that are not there, in processes without interpreter."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import run_python

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")

#: For the other targets, every kernel in one dtype, elementwise and low-rank.
SOME = [
    "sample-fp32-aligned", "sample-fp32-l1-rescaled", "keep_largest-bf16", "histogram-bf16",
    "refine-bf16", "count_between-bf16", "score_bits-bf16", "row_l1-bf16", "row_threshold",
    "keep_largest_of-bf16-2:4", "sample_of-bf16-2:4", "pack_bits-bf16", "keep_bits-bf16",
    "count_rows-bf16", "fill_rows-bf16", "masked_product",
]  # fmt: skip
OTHERS = ("sm_80", "sm_100", "gfx942")
KERNELS = {
    "sample", "keep_largest", "histogram", "refine", "count_between", "score_bits", "row_l1",
    "row_threshold", "keep_largest_of", "sample_of", "pack_bits", "keep_bits", "count_rows",
    "fill_rows", "masked_product",
}  # fmt: skip


@pytest.fixture(scope="module")
def compiled() -> dict[str, dict[str, dict[str, Any]]]:
    """Target -> variant -> figures. Two processes, side by side."""
    found: dict[str, dict[str, dict[str, Any]]] = {}

    def compile_for(arguments: tuple[str, ...]) -> list[str]:
        return run_python("-m", "spectral_kernels.backends.gpu.compile", *arguments).splitlines()

    with ThreadPoolExecutor(2) as pool:
        for lines in pool.map(compile_for, [("sm_90",), (",".join(OTHERS), *SOME)]):
            for line in map(json.loads, lines):
                found.setdefault(line["target"], {})[line["name"]] = line
    return found


@pytest.mark.parametrize("target", ["sm_90", *OTHERS])
def test_every_kernel_compiles(compiled: dict[str, Any], target: str) -> None:
    """A construct that one compiler, NVIDIA's or AMD's, does not take."""
    assert {name.partition("-")[0] for name in compiled[target]} == KERNELS


def test_offsets_into_the_matrix_have_64_bits(compiled: dict[str, Any]) -> None:
    """An offset computed in 32 bits, which wraps in a tensor of more than 2^31 entries."""
    for name, figures in compiled["sm_90"].items():
        # row_threshold reads patterns, whose pointer is moved by 64-bit scalars first.
        expected = [] if name.startswith("row_threshold") else [64]
        assert figures["offset_bits"] == expected, name


@pytest.mark.parametrize(
    ("name", "loop", "total"),
    [
        ("sample-fp32-l1-rescaled", 29, 34),
        ("sample-bf16-l1-rescaled", 26, 32),
        ("sample-fp16-l1-rescaled", 28, 33),
        ("sample-fp32-l1", 20, 25),
        ("sample-bf16-l1", 19, 24),
        ("sample-fp32-hybrid-rescaled", 33, 38.5),
        ("sample-bf16-hybrid-rescaled", 30, 35),
        ("keep_largest_of-bf16-2:4", 24, 31),
        ("sample_of-bf16-2:4-rescaled", 105, 120),
        # The loop over the rank counts once.
        ("sample-bf16-principal", 39, 47),
        ("sample-fp32-mixture", 69, 78),
    ],
)
def test_instructions_of_an_entry(
    compiled: dict[str, Any], name: str, loop: float, total: float
) -> None:
    """Work that creeps in: a second product per round of Philox, a branch to divide."""
    figures = compiled["sm_90"][name]
    assert figures["loop_per_entry"] <= loop
    assert figures["total_per_entry"] <= total


def test_elementwise_kernels_on_sm_90(compiled: dict[str, Any]) -> None:
    """Narrow loads or stores, spilled registers, an exchange through shared memory."""
    for name, figures in compiled["sm_90"].items():
        kernel, _, *label = name.split("-")
        if kernel not in ("sample", "keep_largest") or figures["matrix_units"]:
            continue
        assert figures["local_bytes"] == 0, name
        if "shifted" not in label:
            assert figures["load_bits"] == figures["store_bits"] == 128, name
            assert figures["shared_bytes"] == 0, name


def test_packing_kernels_on_sm_90(compiled: dict[str, Any]) -> None:
    """Narrow loads, or registers that spill."""
    kernels = ("keep_largest_of", "pack_bits", "keep_bits", "count_rows", "fill_rows")
    for name, figures in compiled["sm_90"].items():
        if name.startswith(kernels):
            assert figures["load_bits"] == 128, name
            assert figures["local_bytes"] == 0, name


def test_low_rank_kernels_use_the_matrix_units(compiled: dict[str, Any]) -> None:
    """B = left @ right summed on the ordinary cores, or registers spilled around it."""
    bases = ("principal", "aligned", "mixture")
    low_rank = [name for name in compiled["sm_90"] if name.endswith(bases)]
    assert len(low_rank) > 8
    for name in low_rank:
        figures = compiled["sm_90"][name]
        assert figures["matrix_units"], name
        assert figures["local_bytes"] == 0, name
        # Three programs of four warps on a multiprocessor.
        assert figures["registers"] <= 168, name


def test_every_launch_binds_its_arguments() -> None:
    """An argument that a launch misnames, or whose type changes with its value (a seed of 1)."""
    lines = run_python("-m", "tests.support.triton_launch").splitlines()
    launches = [json.loads(line) for line in lines]
    assert {launch["kernel"] for launch in launches} == KERNELS
    for launch in launches:
        if launch["kernel"] == "sample":
            assert launch["types"]["stream_id"] == launch["types"]["k0"] == "u32"
            assert launch["types"]["row_offset"] == launch["types"]["m"] == "i64"


def test_import_compiles_nothing(tmp_path: Path) -> None:
    """An import that starts a CUDA context or the compiler."""
    code = (
        "import torch, spectral_kernels.backends.gpu.backend as b; assert b.GPU.name == 'gpu'; "
        "assert not torch.cuda.is_initialized()"
    )
    run_python("-c", code, TRITON_CACHE_DIR=str(tmp_path))
    assert not any(tmp_path.iterdir())
