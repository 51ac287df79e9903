"""Where there is no CUDA device, Triton's interpreter runs the GPU kernels on CPU tensors.

Triton reads the variable when the kernels are imported, so it is set before any test module is.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
