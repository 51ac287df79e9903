"""Python in a process of its own, with Triton's compiler instead of its interpreter."""

import os
import socket
import subprocess
import sys


def run_python(*arguments: str, **environment: str) -> str:
    """Output of Python with these arguments and kernels that are compiled, not interpreted."""
    settings = {**os.environ, "TRITON_INTERPRET": "0", **environment}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=settings, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def free_port() -> int:
    """A port of the loopback device that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


#: What a program of `on_processes` begins with.
PROCESS = """
import os, sys, warnings
warnings.simplefilter("ignore")
import torch, torch.distributed as dist
rank, world, port = (int(x) for x in sys.argv[1:4])
arguments = sys.argv[4:]
torch.set_num_threads(1)
dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
def leave():
    sys.stdout.flush()
    os._exit(0)  # gloo would wait for the other process
"""


def on_processes(count: int, program: str, *arguments: str, timeout: float = 300) -> list[str]:
    """What each of several processes of one gloo group, over the loopback device, prints.

    Args:
        count: of processes, each with one thread.
        program: follows `PROCESS` and ends with `leave()`. arguments: for it.
    """
    port = str(free_port())
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1",
                "GLOO_SOCKET_IFNAME": "lo", "TORCH_CPP_LOG_LEVEL": "ERROR"}  # fmt: skip
    command = [sys.executable, "-W", "ignore", "-c", PROCESS + program]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(count), port, *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=settings,
        )
        for rank in range(count)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), outputs
    return [output for output, _ in outputs]
