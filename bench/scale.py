"""Memory and time of calibrated pruning of a folder: block by block, in memory, in processes.

    python -m bench.scale FOLDER --recipe wanda --processes 0 1 2

FOLDER holds a transformers model; the calibration is of random tokens. `0` stands for the model in
memory. Each process has one thread and a core of its own, as far as there are cores. Printed is a
line of JSON a run: the peak of memory above that of the program, in MB, and the processor time, of
the process that has most; seconds by the clock, for a quiet machine; a hash of the tensors that
come out, the same for all runs. The program is what is imported and compiled: the model's own code,
which transformers imports when a model is built, and a small pruning by the same recipe.
"""

import argparse
import gc
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

import spectral_engine as se
from spectral_engine.distributed.launch import launched
from spectral_engine.profiling.device import reset_peak, taken


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--recipe", default="wanda")
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--max-memory", type=int, default=None, help="bytes")
    parser.add_argument("--targets", nargs="+", default=None, help="all layers if not given")
    parser.add_argument("--processes", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker is not None:
        _work(given)
        return
    for processes in given.processes:
        print(json.dumps(_run(processes)), flush=True)


def _run(processes: int) -> dict[str, Any]:
    """A run on so many processes, of this command line."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "out"
        command = [sys.executable, "-m", "bench.scale", *sys.argv[1:], "--worker", str(target)]
        count = max(1, processes)
        settings = {
            **os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count),
            "GLOO_SOCKET_IFNAME": "lo", "IN_MEMORY": str(int(processes == 0)),
        }  # fmt: skip
        workers = [
            subprocess.Popen(
                command, env={**settings, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True
            )
            for rank in range(count)
        ]
        outputs = [worker.communicate()[0] for worker in workers]
        if any(worker.returncode for worker in workers):
            raise RuntimeError(f"a run on {processes} processes failed")
        rows = [json.loads(output.splitlines()[-1]) for output in outputs]
        most = {name: max(row[name] for row in rows) for name in rows[0]}
        return {"processes": processes, **most, "hash": _hash(target)}


def _work(given: argparse.Namespace) -> None:
    """One process of a run."""
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415  (for their memory)

    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(os.environ["RANK"]) % len(cores)]})
    words = json.loads((given.folder / "config.json").read_text())["vocab_size"]
    make = torch.Generator().manual_seed(1)
    ids = torch.randint(words, (given.sequences, 1, given.length), generator=make)
    batches = [{"input_ids": one} for one in ids]
    with torch.device("meta"):
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(given.folder))
    small = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    se.prune(small, given.recipe, 0.5, calibration=[torch.randn(32, 16)], progress=False)
    with launched():
        gc.collect()
        before = reset_peak("cpu")
        start, processor = time.perf_counter(), time.process_time()
        if os.environ["IN_MEMORY"] == "1":
            model = AutoModelForCausalLM.from_pretrained(given.folder, dtype="auto")
            calibration = se.Calibration(batches, sequential=True)
            se.prune(model, given.recipe, 0.5, calibration=calibration,
                     targets=given.targets, progress=False)  # fmt: skip
        else:
            se.prune_file(
                given.folder, given.worker, given.recipe, 0.5, calibration=batches,
                targets=given.targets, max_memory=given.max_memory, progress=False,
            )  # fmt: skip
        row = {
            "recipe": given.recipe,
            "peak MB": round((taken("cpu", before) or 0) / 1e6),
            "processor s": round(time.process_time() - processor, 1),
            "seconds": round(time.perf_counter() - start, 1),
        }
    if os.environ["IN_MEMORY"] == "1":
        shutil.rmtree(given.worker, ignore_errors=True)
        model.save_pretrained(given.worker)
    print(json.dumps(row))


def _hash(folder: Path) -> str:
    """Of all tensors of a folder, by name."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in sorted(file.keys()):
                digest.update(name.encode())
                values = file.get_tensor(name).contiguous().reshape(-1)
                digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    main()
