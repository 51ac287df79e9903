# %% [markdown]
# # Prune a folder of your own
#
# A Hugging Face style folder is pruned, looked at and compressed, one tensor in memory at a time.

# %%
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

import spectral_engine as se

SOURCE = Path("my-model")  # a folder with safetensors; a stand-in is made where there is none
SPARSITY = 0.5

if not SOURCE.exists():
    SOURCE.mkdir()
    weights = {f"layers.{i}.weight": torch.randn(128, 128) for i in range(4)}
    save_file(weights, SOURCE / "model.safetensors")
    (SOURCE / "config.json").write_text(json.dumps({"model_type": "stand-in"}))

# %% [markdown]
# `measure=True` compares the spectra before and after. The page has a row for each layer.

# %%
report = se.prune_file(SOURCE, "pruned", "spectral", SPARSITY, measure=True, force=True)
report.to_html("report.html", force=True)
print(report)

# %% [markdown]
# Values and bits instead of zeros; every bit of every value is kept.

# %%
compressed = se.compress_file("pruned", "small", force=True)
print(compressed)

# %% [markdown]
# The README of the new folder says what was done.

# %%
print(se.write_model_card("small", report).read_text())
