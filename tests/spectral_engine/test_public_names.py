"""The public names are imported at first use, and are then what they are elsewhere."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import spectral_engine as se

STUB = Path(se.__file__).with_suffix(".pyi")


def run(code: str, *arguments: object) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, check=False, cwd=Path(se.__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_type_checkers_see_is_what_there_is():
    """Catches a name that the stub imports and does not list, or lists and does not import."""
    stub = ast.parse(STUB.read_text())
    listed = next(
        ast.literal_eval(node.value) for node in stub.body if isinstance(node, ast.Assign)
    )
    assert sorted(listed) == sorted(se.__all__)
    assert {*se.__all__} <= {*dir(se)}
    for node in stub.body:
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(f"spectral_engine.{node.module}")
            for alias in node.names:
                assert getattr(se, alias.name) is getattr(module, alias.name)


def test_an_unknown_name_is_an_attribute_error():
    """Catches a typo whose message tells less than Python's own."""
    with pytest.raises(AttributeError, match="'spectral_engine' has no attribute 'prun'") as caught:
        se.prun  # noqa: B018
    assert caught.value.name == "prun"
    with pytest.raises(ImportError, match="cannot import name 'prun'"):
        from spectral_engine import prun  # noqa: F401, PLC0415


UNUSED = """
import json, pickle, sys
import spectral_engine as se
from spectral_engine import cli, __version__
seen = {"names": len(se.__all__), "dir": "prune" in dir(se), "unknown": hasattr(se, "sin")}
seen["torch"] = "torch" in sys.modules
seen["room"] = se.layers.views.View is se.View
seen["all"] = {*se.__all__} <= {*vars(se)}
exec("from spectral_engine import *")
seen["star"] = Mask is se.Mask
print(json.dumps(seen))
"""


def test_nothing_is_loaded_before_a_name_is_used():
    """Catches torch loaded by a question whether a name exists, rooms out of reach, and a star that
    brings nothing."""
    assert json.loads(run(UNUSED)) == {
        "names": len(se.__all__), "dir": True, "unknown": False, "torch": False, "room": True,
        "all": True, "star": True,
    }  # fmt: skip


LOAD = """
import sys
import spectral_engine
assert "torch" not in sys.modules
import torch
program = torch.export.load(sys.argv[1])
print(program.module()(torch.ones(1, 64)).shape[-1])
"""


def test_a_stored_program_finds_its_operators(tmp_path):
    """Catches operators that are unknown to torch.export.load until a name of ours is used."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48))
    se.prune(model, "magnitude", 0.8)
    se.finalize(model)
    se.compress(model)
    assert isinstance(model[0], se.SparseLinear)
    program = torch.export.export(model, (torch.ones(1, 64),))
    torch.export.save(program, tmp_path / "program.pt2")
    assert run(LOAD, tmp_path / "program.pt2").strip() == "48"


EAGER = """
import torch, spectral_engine
assert {*spectral_engine.__all__} <= {*vars(spectral_engine)}
torch.ops.spectral_engine.sparse_linear
"""


def test_all_is_there_where_torch_is():
    """Catches operators that torch.jit.load misses though both packages are imported."""
    run(EAGER)


THREADS = """
import sys, threading
import spectral_engine as se
names = [name for name in se.__all__ if name != "__version__"]
start, failed = threading.Barrier(16), []
def use(mine):
    start.wait()
    try:
        for name in mine:
            getattr(se, name)
    except BaseException as error:
        failed.append(repr(error))
threads = [threading.Thread(target=use, args=(names[i::16],)) for i in range(16)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
assert "torch" in sys.modules and not failed, failed
"""


def test_threads_may_use_the_first_names_together():
    """Catches threads that import each other's modules half way, or wait for each other."""
    run(THREADS)
