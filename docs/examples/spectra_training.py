# %% [markdown]
# # Spectra of a model through its training
#
# A tracker records the leading singular values of every weight every few steps. It changes nothing.

# %%
import torch
from torch import nn

import spectral_engine as se
from spectral_engine.demo.data import fashion_mnist_test, to_tensors

torch.manual_seed(0)
images, labels = to_tensors(*fashion_mnist_test())
train = torch.utils.data.TensorDataset(images[:3000].flatten(1), labels[:3000])
model = nn.Sequential(
    nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 10)
)
optimizer = torch.optim.SGD(model.parameters(), 0.1)

# %%
with se.SpectrumTracker(model, every=10, rank=8, optimizer=optimizer) as tracker:
    for _ in range(3):
        for inputs, targets in torch.utils.data.DataLoader(train, 50, shuffle=True):
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            optimizer.zero_grad()

# %% [markdown]
# The largest singular value at the beginning and at the end, and the step from which each spectrum
# was at rest (None: it still moves):

# %%
rest = tracker.stabilised()
for name in tracker.names:
    values = tracker.singular_values(name)
    print(f"{name}: {values[0, 0]:.3f} to {values[-1, 0]:.3f}, at rest from step {rest[name]}")
tracker.plot("spectra-training.png")
tracker.save("spectra-training.npz")

# %% [markdown]
# And as they are now, with norms, ranks and noise levels:

# %%
print(se.spectra(model, rank=8))
