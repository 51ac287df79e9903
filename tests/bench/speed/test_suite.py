"""The speed suite itself: that its rows say what they claim, and that its report always prints."""

import io
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from rich.console import Console

from bench import tidy
from bench.speed import baselines, report, test_speed
from bench.speed.cases import SIZES, Case, selection
from bench.speed.operations import OPERATIONS
from bench.speed.problem import Problem
from bench.speed.timing import LEAST_ROUNDS, MOST_ROUNDS, interleave, ratio

ROOT = Path(__file__).parents[3]
SUITE = "bench/speed/test_speed.py"
SIZE = 33  # not divisible by 4
FIELDS = {"operation", "backend", "device", "shape", "dtype", "sparsity", "bytes", "gb_per_s", "ms"}
RATIOS = {"reference", "ratio_copy", "ratio_copy_new", "seconds", "copy_seconds"}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `pytest --benchmark` writes of the operations for one tiny size."""
    path = tmp_path_factory.mktemp("bench") / "result.json"
    # A worker of pytest-xdist says so in its environment, and benchmarks are left out there.
    inherited = {name: v for name, v in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    options = ["--benchmark", "-q", "-k", "float32", f"--benchmark-json={path}"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, SUITE],
        cwd=ROOT, env=inherited | {"BENCH_SIZES": str(SIZE)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    written: dict[str, Any] = json.loads(path.read_text())
    return written


def printed(rows: list[dict[str, Any]]) -> str:
    stream = io.StringIO()
    report.show(rows, Console(file=stream, width=120))
    return stream.getvalue()


def test_every_row_carries_its_fields(result: dict[str, Any]) -> None:
    """An operation or implementation that fell out of the suite; a field left out of a row."""
    rows = report.rows_of(result)
    assert len(rows) == len(result["benchmarks"])
    for row in rows:
        assert row.keys() >= FIELDS | RATIOS
        assert row["shape"] == [SIZE, SIZE]
        assert row["gb_per_s"] == pytest.approx(row["bytes"] / row["ms"] / 1e6)
    expected = {
        (name, one) for name in OPERATIONS for one in OPERATIONS[name].implementations("cpu")
    }
    assert {
        (row["operation"], row["backend"]) for row in rows if row["device"] == "cpu"
    } == expected


def test_the_numbers_to_keep_are_those_of_the_rows(result: dict[str, Any], tmp_path: Path) -> None:
    """A row or a ratio that is not in the CSV, two rows under one name, a head without versions."""
    rows = report.rows_of(result)
    tidy.write(tmp_path / "speed.csv", report.numbers(rows), report.head(result))
    head, found = tidy.read(tmp_path / "speed.csv")
    assert len({row[:5] for row in found}) == len(found)
    assert [row.value for row in found if row.metric == "ratio_copy"] == [
        pytest.approx(row["ratio_copy"], rel=1e-4) for row in rows
    ]
    kept = {row.metric for row in found}
    assert {"ms", "copy_ms", "ratio_copy_new", "speedup_pytorch", "speedup_oracle"} <= kept
    assert all(name in head["versions"] for name in ("python 3", "torch 2", "numba 0"))
    assert len(head["date"]) == len("2026-11-23")


def test_ratio_is_that_of_pairs_of_the_same_run(result: dict[str, Any]) -> None:
    """A ratio of medians, one turned upside down, or one to the copy of another case."""
    rows = report.rows_of(result)
    for row in rows:
        for copy in ("copy", "copy_new"):
            pairs = zip(row["seconds"], row[f"{copy}_seconds"], strict=False)
            paired = statistics.median(own / reference for own, reference in pairs)
            assert row[f"ratio_{copy}"] == pytest.approx(paired)
    # The implementations of one case shared the rounds of one copy; no two cases did.
    cases = {(row["operation"], row["device"], row["sparsity"]) for row in rows}
    assert len({tuple(row["copy_seconds"]) for row in rows}) == len(cases)


def test_ratio_follows_the_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ratio that does not come from timing the copy: a slower copy must lower it."""
    quick = baselines.copy

    def slow(A: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        time.sleep(0.06)
        copied: torch.Tensor = quick(A, out)
        return copied

    monkeypatch.setattr(baselines, "copy", slow)
    case = Case("copy", SIZE, "float32", None, "cpu")
    times = interleave(case.contenders(["numpy"]))
    row = test_speed.describe(case, "numpy", times)
    assert min(row["copy_seconds"]) >= 0.06
    assert 0 < row["ratio_copy"] < 0.5


def test_rounds_are_in_step() -> None:
    """Times of different rounds paired: on a machine that slows down steadily it shows."""
    now, calls = [0.0], {"copy": 0, "slow": 0}

    def contender(name: str, duration: float) -> Any:
        def run() -> None:
            calls[name] += 1
            now[0] += duration * 1.25 ** calls[name]

        return run

    contenders = {"copy": contender("copy", 0.06), "slow": contender("slow", 0.42)}
    times = interleave(contenders, clock=lambda: now[0])
    assert len(times["slow"]) == LEAST_ROUNDS < len(times["copy"]) < MOST_ROUNDS
    assert ratio(times, "slow", "copy") == pytest.approx(7.0)
    assert ratio(times, "copy", "slow") == pytest.approx(1 / 7)


def test_references_copy_the_matrix() -> None:
    """A reference that copies nothing, or whose new array is an old one."""
    calls: dict[str, Any] = {**Case("sample", SIZE, "bfloat16", 0.9, "cpu").contenders([])}
    assert list(calls) == ["copy", "copy_new"]
    assert calls["copy"]().data_ptr() == calls["copy"]().data_ptr()
    first, second = calls["copy_new"](), calls["copy_new"]()
    assert first.data_ptr() != second.data_ptr()
    assert torch.equal(first, second)
    assert torch.equal(first, calls["copy"]())


def as_array(made: Any) -> np.ndarray:
    """What an implementation returned, as float64."""
    made = getattr(made, "weight", made)
    if isinstance(made, torch.Tensor):
        made = made.double().numpy()
    return np.asarray(made, np.float64)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("operation", ["sample", "keep_largest", "randomized", "magnitude",
                                       "magnitude_rows", "principal"])  # fmt: skip
def test_implementations_do_the_same_work(operation: str, dtype: str) -> None:
    """A baseline that keeps another number of entries, or a backend called with other arguments."""
    torch.manual_seed(0)
    problem = Problem(SIZE, dtype, 0.9, "cpu")
    made = {}
    for name, run in OPERATIONS[operation].implementations("cpu").items():
        value = run(problem)
        made[name] = as_array(problem.existing if isinstance(value, int) else value)
    kept = {name: np.count_nonzero(S) for name, S in made.items()}
    if dtype == "float32" or operation in ("sample", "randomized", "principal"):
        # In bfloat16 the values of A / p are not rounded by the oracle, which carries float32.
        np.testing.assert_array_equal(made["numba"] != 0, made["oracle"] != 0)
    if operation in ("keep_largest", "magnitude", "magnitude_rows"):
        assert len(set(kept.values())) == 1 or (operation, dtype) == ("keep_largest", "bfloat16")
        largest = {name: np.sort(np.abs(S), axis=None) for name, S in made.items()}
        for name, values in largest.items():
            np.testing.assert_array_equal(values, largest["oracle"], err_msg=name)
    else:
        # The count is a sum of independent draws: its deviation is under sqrt K, seven here.
        for name, count in kept.items():
            assert abs(count - problem.kept) < 7 * problem.kept**0.5, name


def test_rescaled_values_of_the_baselines() -> None:
    """A baseline that rescales by another number than the probability it drew with."""
    torch.manual_seed(1)
    problem = Problem(SIZE, "float32", 0.9, "cpu")
    A = problem.A.double().numpy()
    plain = OPERATIONS["randomized"].plain
    for name in ("pytorch", "bisection"):
        S = as_array(plain[name](problem))
        # Nothing is capped at 90 %: |A / p| is sum |A| / K wherever an entry is kept.
        np.testing.assert_allclose(
            np.abs(S[S != 0]), np.abs(A).sum() / problem.kept, rtol=2e-3, err_msg=name
        )


def test_histograms_agree() -> None:
    """A baseline that counts other bins than the kernels, or counts zeros."""
    problem = Problem(SIZE, "float32", 0.0, "cpu")
    problem.A[:5] = 0
    implementations = OPERATIONS["histogram"].implementations("cpu")
    made = {name: np.stack([*run(problem)]) for name, run in implementations.items()}
    for name, integers in made.items():
        np.testing.assert_array_equal(integers, made["oracle"], err_msg=name)


def test_default_selection() -> None:
    """A default run that lacks what the targets need, or repeats or invents a row."""
    part, whole = (list(selection(SIZES, ("cpu", "cuda"), whole=whole)) for whole in (False, True))
    assert len(set(whole)) == len(whole)
    assert set(part) < set(whole)
    for name, operation in OPERATIONS.items():
        case = Case(name, 4096, "float32", 0.9 if operation.sparse else None, "cpu")
        here = [implementation for other, implementation in part if other == case]
        assert here == list(operation.implementations("cpu"))
    on_cuda = {implementation for case, implementation in whole if case.device == "cuda"}
    assert "triton" in on_cuda
    assert not on_cuda & {"numba", "oracle", "numpy"}


@pytest.mark.parametrize("wanted", ["512,", "x", "1", "-4", "12.5"])
def test_sizes_refused(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    """Sizes that are none, which would run nothing and look like success."""
    monkeypatch.setenv("BENCH_SIZES", wanted)
    with pytest.raises(pytest.UsageError, match="BENCH_SIZES: expected sizes of 2 or more"):
        test_speed.sizes()


def test_report_prints_every_row(result: dict[str, Any]) -> None:
    """A table that drops rows or cuts their names."""
    rows = report.rows_of(result)
    lines = printed(rows).splitlines()
    for row in rows:
        found = [line for line in lines if line.split()[:1] == [row["operation"]]]
        assert any(f" {row['backend']} " in line for line in found), row


@pytest.mark.parametrize(
    ("measured", "verdict"), [(1.9, "reached"), (2.1, "not reached"), (None, "not measured")]
)
def test_targets(measured: float | None, verdict: str) -> None:
    """A verdict turned upside down, or one given on nothing."""
    row = {"operation": "sample", "backend": "numba", "dtype": "float32", "sparsity": 0.9}
    row |= {"shape": [4096, 4096], "ratio_copy": measured, "speedup_oracle": 19.0}
    lines = printed([row]).splitlines()
    copy, oracle = (
        next(line for line in lines if line.strip().startswith(f"sample: {words}"))
        for words in ("at most 2 x", "at least 20 x")
    )
    assert copy.strip().endswith(verdict)
    assert ("not" in copy) == ("not" in verdict)
    assert oracle.strip().endswith("not reached")


@pytest.mark.parametrize(
    "row",
    [
        {"operation": "sample"},
        {"backend": None, "shape": None, "sparsity": "90", "ms": "x", "ratio_copy": [1]},
        {"shape": [4096, 4096], "sparsity": 0.9, "backend": "numba", "dtype": "float32"},
        {"gb_per_s": float("nan"), "ms": float("inf"), "speedup_oracle": True},
        {"operation": "[/red]", "shape": [3]},
    ],
)
def test_report_of_rows_that_lack_fields(row: dict[str, Any]) -> None:
    """A report that falls over a row of another version, or of another suite."""
    assert "not measured" in printed([row])


def test_report_of_two_devices() -> None:
    """PyTorch's row on the CPU taken for the one on CUDA."""
    rows = [{"operation": "sample", "backend": "pytorch", "device": on} for on in ("cpu", "cuda")]
    assert "cuda" in printed(rows)
    assert "cuda" not in printed(rows[:1])


@pytest.mark.parametrize("content", ["", "[1]", '{"benchmarks": 3}', '{"benchmarks": [3]}', "\xff"])
def test_report_of_other_files(tmp_path: Path, content: str) -> None:
    """A traceback where the file is not a result."""
    path = tmp_path / "other.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(typer.BadParameter, match=r"other\.json"):
        report.main(path)
