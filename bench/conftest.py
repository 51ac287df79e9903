"""What a result file says of the machine beside the times."""

from typing import Any

import numba
import numpy
import torch


def pytest_benchmark_update_machine_info(config: object, machine_info: dict[str, Any]) -> None:
    """Add the threads that share the work, the versions and the CUDA device."""
    machine_info["threads"] = {"numba": numba.get_num_threads(), "torch": torch.get_num_threads()}
    machine_info["versions"] = {
        package.__name__: str(package.__version__) for package in (numba, numpy, torch)
    }
    if torch.cuda.is_available():
        machine_info["cuda"] = torch.cuda.get_device_name()
