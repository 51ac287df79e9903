"""Python in a process of its own, with Triton's compiler instead of its interpreter."""

import os
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
