"""Where compiled kernels are kept: no place to keep them, and damaged files, are no errors."""

import shutil
from pathlib import Path

import pytest
import spectral_kernels

from tests.support.processes import run_python

CALL = """
import logging
import sys
logging.basicConfig(stream=sys.stdout, format="%(message)s")
import numpy as np
import spectral_kernels as sk
from spectral_kernels.backends import solver
count = np.zeros(8192, np.int64)
count[[3000, 4000]] = 5, 7
print(sk.__file__)
print(solver.find_rank(count, 8))
"""
#: By the counts above: 7 scores lie in bin 4000, the eighth in bin 3000.
RANK = "(3000, 7)"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, of which no `__pycache__` can be made: a file is in its place."""
    copy = tmp_path / "site" / "spectral_kernels"
    source = Path(spectral_kernels.__file__).parent
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in [copy, *copy.rglob("*")]:
        if folder.is_dir():
            (folder / "__pycache__").write_text("no folder")
    return copy


def call(package: Path, **environment: str) -> str:
    """What `CALL` prints where the package lies in `package`."""
    found = run_python("-c", CALL, PYTHONPATH=str(package.parent), **environment)
    assert str(package) in found
    return found


def test_nothing_can_be_written(package: Path, tmp_path: Path) -> None:
    """An import that fails ("cannot cache function") where neither the package's folder nor the
    user's can be written, as in many containers; one warning says what that costs."""
    home = tmp_path / "home"
    home.write_text("no folder")
    places = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "NUMBA_CACHE_DIR": ""}
    found = call(package, **places)
    assert RANK in found
    assert found.count("set NUMBA_CACHE_DIR") == 1


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
@pytest.mark.parametrize("size", [0, 20, 200])
def test_damaged_files(tmp_path: Path, kind: str, size: int) -> None:
    """A file of the cache that a full disk or a killed process cut short, which makes every call
    raise EOFError or UnpicklingError; it is put right instead."""
    package, cache = Path(spectral_kernels.__file__).parent, tmp_path / "cache"
    assert RANK in call(package, NUMBA_CACHE_DIR=str(cache))
    files = list(cache.rglob(f"budget.find_rank-*.{kind}"))
    assert len(files) == 1
    whole = files[0].read_bytes()
    files[0].write_bytes(whole[:size])
    assert RANK in call(package, NUMBA_CACHE_DIR=str(cache))
    assert files[0].stat().st_size == len(whole)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_full_disk(tmp_path: Path) -> None:
    """A disk that is full when machine code is to be kept, which makes the call raise OSError."""
    code = CALL.replace(
        "import numpy as np",
        "import numba.core.caching as caching\n"
        "from contextlib import contextmanager\n"
        "@contextmanager\n"
        "def full(self, path):\n"
        "    with open('/dev/full', 'wb') as file:\n"
        "        yield file\n"
        "caching.IndexDataCacheFile._open_for_write = full\n"
        "import numpy as np",
    )
    found = run_python("-c", code, NUMBA_CACHE_DIR=str(tmp_path))
    assert RANK in found
    assert "No space left on device" in found


def test_code_of_other_sources_is_not_used(package: Path, tmp_path: Path) -> None:
    """Machine code that outlives an upgrade: a kernel whose own file is the same, and which has
    what it calls from another file compiled in."""
    cache = str(tmp_path / "cache")
    code = """
import numpy as np
from spectral_kernels.backends.cpu import kernels
print(len(kernels.line()))
"""
    run = {"PYTHONPATH": str(package.parent), "NUMBA_CACHE_DIR": cache}
    assert run_python("-c", code, **run) == "1024\n"
    chunks = package / "backends" / "cpu" / "chunks.py"
    text = chunks.read_text()
    assert text.count("CHUNK = 1024") == 1
    chunks.write_text(text.replace("CHUNK = 1024", "CHUNK = 2048"))
    assert run_python("-c", code, **run) == "2048\n"
