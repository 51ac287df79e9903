"""The speed suite: each operation, in each implementation, beside a parallel copy of its matrix.

    pytest --benchmark                        the default part, some minutes on two cores
    pytest --benchmark --slow                 the whole cross product, hours
    pytest --benchmark -k "magnitude and 4096"
    BENCH_SIZES=256,768 pytest --benchmark    other sizes

By default: every size, both dtypes, at 90 %, and 50 and 99 % at size 1024. The backends at every
size; plain PyTorch up to 4096; the slow ones, which are the NumPy oracle and the further ways to
write an operation in PyTorch, up to 1024 and at 4096 in float32.

All the implementations of a case that were selected take turns with both references (`timing`),
and a row's extra_info comes from there. pytest-benchmark's own figures, from a few more calls,
stand beside it. `report.py` prints the ratios of a file written with --benchmark-json.
"""

import statistics
from functools import lru_cache
from typing import Any

import pytest
import torch

from bench.speed.cases import REFERENCES, SIZES, Case, selection
from bench.speed.sizes import sizes_or
from bench.speed.timing import Contender, Times, interleave, ratio

#: pytest-benchmark may call an implementation this many seconds or times more, or once.
SECONDS, CALLS = 0.2, 5


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each case and implementation."""
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    rows = list(selection(sizes(), devices, whole=metafunc.config.getoption("--slow")))
    ids = [f"{case}-{implementation}" for case, implementation in rows]
    metafunc.parametrize(("case", "implementation"), rows, ids=ids)


def sizes() -> tuple[int, ...]:
    """`SIZES`, or what the environment variable BENCH_SIZES says in their place."""
    return sizes_or(SIZES)


@pytest.fixture(scope="session")
def contest(request: pytest.FixtureRequest) -> Any:
    """A function of a case: its selected contenders, and their times; the last case is held."""

    @lru_cache(maxsize=1)
    def run(case: Case) -> tuple[dict[str, Contender], Times]:
        items = (item for item in request.session.items if hasattr(item, "callspec"))
        parameters = [item.callspec.params for item in items]
        names = [one["implementation"] for one in parameters if one.get("case") == case]
        contenders = case.contenders(names)
        return contenders, interleave(contenders)

    return run


def describe(case: Case, implementation: str, times: Times) -> dict[str, Any]:
    """The extra_info of a row; a speed-up is over another implementation of the same case."""
    milliseconds = {name: 1e3 * statistics.median(spent) for name, spent in times.items()}
    own = milliseconds[implementation]
    row: dict[str, Any] = {
        "operation": case.operation,
        "backend": implementation,
        "device": case.device,
        "shape": [case.size, case.size],
        "dtype": case.dtype,
        "sparsity": case.sparsity,
        "bytes": case.bytes_floor,
        "gb_per_s": case.bytes_floor / own / 1e6,
        "ms": own,
        "reference": case.reference,
        "seconds": times[implementation],
    }
    for name in REFERENCES:
        row[f"{name}_ms"] = milliseconds[name]
        row[f"{name}_seconds"] = times[name]
        row[f"ratio_{name}"] = ratio(times, implementation, name)
    for name in times:
        if name not in (implementation, *REFERENCES):
            row[f"speedup_{name}"] = ratio(times, name, implementation)
    return row


def test_speed(benchmark: Any, contest: Any, case: Case, implementation: str) -> None:
    """Measure one implementation of one case; nothing here fails for being slow."""
    contenders, times = contest(case)
    benchmark.group = str(case)
    benchmark.extra_info.update(describe(case, implementation, times))
    rounds = int(SECONDS / statistics.median(times[implementation]))
    benchmark.pedantic(contenders[implementation], rounds=max(1, min(CALLS, rounds)))
