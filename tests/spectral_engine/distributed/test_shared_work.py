"""Work that processes share: the same bytes as one process alone, whoever has which batch."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import spectral_engine as se
from tests.support.processes import free_port, on_processes

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="needs torch.distributed with gloo",
)

PROGRAM = """
import copy, hashlib, json
from torch import nn
import spectral_engine as se

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(3, 8, 3)
        self.query, self.key = nn.Linear(8, 16), nn.Linear(8, 16)
        self.seldom, self.never = nn.Linear(16, 16), nn.Linear(16, 4)
        self.last = nn.Linear(16, 5)
    def forward(self, x):
        x = torch.relu(self.conv(x)).transpose(1, 2)
        x = torch.tanh(self.query(x) + self.key(x))
        if float(x[0, 0, 0]) > 0:  # some of the batches only
            x = x + self.seldom(x)
        return self.last(x)

def made():
    torch.manual_seed(0)
    return Model()

def batches(count=5):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2 + i, 3, 40, generator=generator) * 3.0 ** (i - 2) for i in range(count)]

def calibration(**options):
    return se.Calibration(batches(), **options)

def told(model, report):
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.numpy().tobytes())
    rows = [[one.name, one.nnz, one.samples, one.few, one.uncalibrated] for one in report.layers]
    return [digest.hexdigest(), rows]

RECIPES = {
    "magnitude": ("magnitude", None), "randomized": ("randomized", None),
    "principal": ("principal", None), "wanda": ("wanda", {}),
    "least-squares": ("least-squares", {}), "alps": ("alps", {}), "sparsegpt": ("sparsegpt", {}),
    "bias": (se.Recipe(refit=se.LeastSquares(bias_correction=True)), {"max_samples": 60}),
    "sequential": ("wanda", {"sequential": True}),
    "asymmetric": ("least-squares", {"sequential": True, "asymmetric": True}),
    "weighed": ("wanda", {"positions": lambda batch: torch.arange(1., 39.).expand(len(batch), 38)}),
}

def pruned(name):
    recipe, options = RECIPES[name]
    given = None if options is None else calibration(**options)
    model = made()
    return told(model, se.prune(model, recipe, 0.5, calibration=given, seed=3))
"""

SHARED = """
found = {"alone": {name: pruned(name) for name in RECIPES}} if rank == 0 else {}
with se.share_work():
    found["shared"] = {name: pruned(name) for name in RECIPES}
    inputs = se.calibrate(made(), batches())
    model = made()
    found["gathered"] = told(model, se.prune(model, "alps", 0.5, calibration=inputs, seed=3))
    found["spectra"] = [one.singular_values for one in se.spectra(made(), rank=3)]
    from spectral_engine.recipe import allocation
    curve, read = allocation.magnitude_curve, []
    allocation.magnitude_curve = lambda weight, name: (read.append(name), curve(weight, name))[1]
    for suffix in ("safetensors", "pt", "npz"):
        for recipe in ("randomized", "principal", se.Recipe(budget=se.Global(0.5))):
            share = 0.5 if isinstance(recipe, str) else None
            report = se.prune_file(
                f"{arguments[0]}/dense.{suffix}", f"{arguments[0]}/{world}.{suffix}", recipe, share,
                seed=3, force=True)
            with open(f"{arguments[0]}/{world}.{suffix}", "rb") as file:
                digest = hashlib.sha256(file.read()).hexdigest()
            rows = [[one.name, one.nnz] for one in report.layers]
            found.setdefault("files", []).append([digest, rows])
            dist.barrier()  # or the first process goes on to write the next one
    found["read"] = read
    try:
        se.prune_file(f"{arguments[0]}/dense.pt", f"{arguments[0]}/{world}.pt")
    except FileExistsError as error:
        found["exists"] = type(error).__name__
    broken = batches()
    broken[-1][0, 0, 0] = float("nan")
    for calibration in (broken, batches()[:1]):
        model = made()
        try:
            report = se.prune(model, "wanda", 0.5, calibration=calibration)
            found["one batch"] = told(model, report)
        except ValueError as error:
            found["broken"] = str(error)
print(json.dumps(found)); leave()
"""


@pytest.fixture(scope="module", params=[2, 4])
def both(request, tmp_path_factory):
    """What each of several processes found."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    weights = {f"{i}.weight": torch.randn(4 + i, 12) for i in range(7)}
    save_file(weights, folder / "dense.safetensors")
    torch.save(weights, folder / "dense.pt")
    np.savez(folder / "dense.npz", **{name: weight.numpy() for name, weight in weights.items()})
    outputs = on_processes(request.param, PROGRAM + SHARED, str(folder))
    return folder, [json.loads(output.splitlines()[-1]) for output in outputs]


@pytest.fixture(scope="module")
def outcomes(both):
    """What each of several processes found."""
    return both[1]


def test_any_number_of_processes_gives_the_bytes_of_one(outcomes):
    """Catches sums that hang on who has which batch, samples drawn by the order of the calls, and
    a layer that a process has not seen left out of the others' counts."""
    alone = outcomes[0]["alone"]
    assert len(alone) == 11
    assert len({digest for digest, _ in alone.values()}) == 11
    for one in outcomes:
        for name, expected in alone.items():
            assert one["shared"][name] == expected, name
        assert one["gathered"] == alone["alps"]


def test_every_process_has_the_same_result(outcomes):
    """Catches spectra of one process's share, and an idle process that is left behind where there
    are fewer batches than processes."""
    first = {key: outcomes[0][key] for key in ("shared", "spectra", "one batch")}
    assert len(first["spectra"]) == 6
    assert all({key: one[key] for key in first} == first for one in outcomes)


def test_a_file_has_the_bytes_that_one_process_writes(both):
    """Catches tensors in the wrong place, draws by process, a budget of a share of the file, and
    processes that all write to one target."""
    folder, outcomes = both
    expected = []
    for suffix in ("safetensors", "pt", "npz"):
        for recipe in ("randomized", "principal", se.Recipe(budget=se.Global(0.5))):
            target = folder / f"alone.{suffix}"
            report = se.prune_file(
                folder / f"dense.{suffix}", target, recipe,
                0.5 if isinstance(recipe, str) else None, seed=3, force=True,
            )  # fmt: skip
            digest = hashlib.sha256(target.read_bytes()).hexdigest()
            expected.append([digest, [[one.name, one.nnz] for one in report.layers]])
    for one in outcomes:
        assert one["files"] == expected
        assert one["exists"] == "FileExistsError"
    assert not [path for path in folder.iterdir() if "partial" in path.name]


def test_weights_are_read_once_for_a_budget(outcomes):
    """Catches a budget that layers share for which every process reads all of them."""
    names = sorted(3 * [f"{i}.weight" for i in range(7)])
    assert sorted(name for one in outcomes for name in one["read"]) == names
    assert all(one["read"] for one in outcomes)


def test_torchrun_shares_the_command_out(tmp_path):
    """Catches a command that each process runs whole, and whose output comes once from each."""
    torch.manual_seed(0)
    save_file({f"{i}.weight": torch.randn(9, 8) for i in range(3)}, tmp_path / "dense.safetensors")
    command = [
        "prune",
        "dense.safetensors",
        "--recipe",
        "randomized",
        "--sparsity",
        "0.5",
        "--json",
    ]
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
           "--master-addr", "127.0.0.1", "--master-port", str(free_port()),
           "-m", "spectral_engine"]  # fmt: skip
    done = subprocess.run(
        [*run, *command, "-o", "shared.safetensors"], cwd=tmp_path, capture_output=True, text=True,
        check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["layers"]) == 3
    se.prune_file(tmp_path / "dense.safetensors", tmp_path / "one.safetensors", "randomized", 0.5)
    shared, one = (tmp_path / f"{name}.safetensors" for name in ("shared", "one"))
    assert shared.read_bytes() == one.read_bytes()


def test_an_error_of_one_process_is_raised_by_all(outcomes):
    """Catches processes that wait for ever for one that has given up."""
    expected = "calibration: batch 4 holds NaN or infinity"
    assert [one["broken"] for one in outcomes] == [expected] * len(outcomes)


def test_alone_nothing_is_shared():
    """Catches a single process that waits for others."""
    model = torch.nn.Linear(8, 4)
    with se.share_work():
        assert se.prune(model, sparsity=0.5).nnz == 16
