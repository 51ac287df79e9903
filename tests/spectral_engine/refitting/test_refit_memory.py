"""The memory that calibrated pruning says it takes, beside what a process has at its peak."""

import subprocess
import sys

import pytest

MEASURE = """
import ctypes, re, sys
from pathlib import Path
import torch
from torch import nn
import spectral_engine as se
from spectral_engine.calibration.calibrator import Calibrator
from spectral_engine.calibration.request import Calibration, Request
from spectral_engine.layers.find import find_layers
from spectral_engine.recipe.refits import REFITS
from spectral_engine.refitting import alps
from spectral_engine.layers.selector import Selector

ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: what is freed goes back at once
torch.set_num_threads(1)
refit = REFITS[sys.argv[1]]()
# The iterations repeat what the first ones hold; ALPS takes its steps from its default.
alps.alps_mask.__kwdefaults__["steps"] = 3

def status(field):
    found = re.search(field + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found[1])

def prune(n, m, dtype):
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(n, m, dtype=dtype)), list(torch.randn(9, 4, n).to(dtype))
    layers = find_layers(model, Selector.of(None, None))[0]
    requests = [Request(layer, refit) for layer in layers]
    stated = Calibrator(model, requests, Calibration(data)).bytes
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = status("VmRSS")
    se.prune(model, se.Recipe(refit=refit), 0.5, calibration=data, masks=False)
    return stated, status("VmHWM") - before

for case in ((1280, 32, torch.float32), (256, 6144, torch.float32), (256, 6144, torch.bfloat16)):
    prune(*case)  # compiles what it needs, starts threads, and fills the libraries' own buffers
    print(*prune(*case))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize("refit", ["least-squares", "spectral", "sparsegpt", "alps"])
def test_a_refit_takes_the_memory_that_is_stated_first(refit):
    """Catches a matrix of the moments' size, or of the weight's, that a refit holds and the
    estimate leaves out; and an estimate of twice what is needed, which refuses what would fit.

    Two MiB are left to activations, and to the rows that least squares takes together at least.
    """
    arguments = [sys.executable, "-c", MEASURE, refit]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    measured = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(measured) == 3
    for stated, peak in measured:
        assert stated / 2 < peak <= stated + (2 << 20)
