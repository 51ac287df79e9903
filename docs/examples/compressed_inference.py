# %% [markdown]
# # Inference without the zeros
#
# A pruned network runs from its values and one bit an entry. How much faster that is depends on the
# machine: where layers wait for memory, up to the ratio of bytes.

# %%
import copy
import time

import torch
from torch import nn

import spectral_engine as se

WIDTH, SPARSITY = 1024, 0.7  # try 8192, which no cache holds

torch.manual_seed(0)
dense = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
se.prune(dense, "magnitude", SPARSITY)

# %%
sparse = copy.deepcopy(dense)
report = se.compress(sparse)
print(report)
print(f"{report.ratio:.1%} of the bytes")

# %% [markdown]
# One input at a time, as in generation; the best of several turns for each, turn about.

# %%
x = torch.randn(1, WIDTH)
best = {"dense": float("inf"), "sparse": float("inf")}
with torch.inference_mode():
    for _ in range(20):
        for name, model in (("dense", dense), ("sparse", sparse)):
            start = time.perf_counter()
            model(x)
            best[name] = min(best[name], time.perf_counter() - start)
    print(f"dense {1e3 * best['dense']:.2f} ms, sparse {1e3 * best['sparse']:.2f} ms")
    print("largest difference:", (dense(x) - sparse(x)).abs().max().item())

# %% [markdown]
# Plain layers again, bit for bit:

# %%
se.decompress(sparse)
print(torch.equal(sparse[0].weight, dense[0].weight))
