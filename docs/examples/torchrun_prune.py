# %% [markdown]
# # Pruning shared out among processes
#
#     torchrun --nproc-per-node 2 docs/examples/torchrun_prune.py
#
# Each process holds the same model; layers and calibration batches are shared out, and all end with
# the bytes that one process alone would end with. Without torchrun it is that one process.

# %%
import hashlib
import os

import torch
from torch import nn

import spectral_engine as se

if "RANK" in os.environ:
    torch.distributed.init_process_group("gloo")

torch.manual_seed(0)
model = nn.Sequential(
    nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
)
batches = [torch.randn(32, 64) for _ in range(8)]

# %%
with se.share_work():
    report = se.prune(model, "least-squares", 0.7, calibration=batches, progress=False)

# %% [markdown]
# The same at any number of processes:

# %%
digest = hashlib.sha256()
for tensor in model.state_dict().values():
    digest.update(tensor.numpy().tobytes())
print(f"rank {os.environ.get('RANK', '0')}: {report.sparsity:.4f} zeros, {digest.hexdigest()[:16]}")

if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
