"""What every test run shares: which folder is collected, which tests are skipped, the profiles.

    pytest                the tests in tests/
    pytest --benchmark    the speed suite in bench/, and it alone
    pytest --slow         the slow tests too

A path named on the command line is always collected. pytest-benchmark's own options
(--benchmark-only, --benchmark-json=FILE, ...) go on working beside --benchmark.
"""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Before anything imports matplotlib: plots are written to files, no display is asked for.
os.environ["MPLBACKEND"] = "Agg"

# A failure must come back on the next run and on the next machine: examples are derived from the
# test itself. `--hypothesis-profile=default` searches at random instead. No deadline, since the
# first call of a kernel compiles it.
settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --benchmark and --slow."""
    group = parser.getgroup("spectral-engine")
    group.addoption("--benchmark", action="store_true", help="run the speed suite in bench/ only")
    group.addoption("--slow", action="store_true", help="run the tests marked slow as well")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out tests/ or bench/, unless the command line names something inside it."""
    left_out = config.rootpath / ("tests" if config.getoption("--benchmark") else "bench")
    if collection_path.is_relative_to(left_out) and not _named(left_out, config):
        return True
    return None


def _named(folder: Path, config: pytest.Config) -> bool:
    if config.args_source is pytest.Config.ArgsSource.TESTPATHS:
        return False
    paths = (config.invocation_params.dir / argument.split("::")[0] for argument in config.args)
    return any(path.resolve().is_relative_to(folder) for path in paths)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip slow tests unless asked for, and gpu tests where there is no CUDA device."""
    if not config.getoption("--slow"):
        _skip(items, "slow", "slow: needs many gigabytes or minutes; run with --slow")
    if any(item.get_closest_marker("gpu") for item in items) and not _has_cuda():
        _skip(items, "gpu", "gpu: needs a CUDA device, and torch finds none")


def _skip(items: list[pytest.Item], marker: str, reason: str) -> None:
    for item in items:
        if item.get_closest_marker(marker):
            item.add_marker(pytest.mark.skip(reason=reason))


def _has_cuda() -> bool:
    import torch  # noqa: PLC0415  (a second or more; only runs with gpu tests pay for it)

    return torch.cuda.is_available()
