# %% [markdown]
# # A convolutional network, pruned while it trains
#
# Three convolutions on the Fashion-MNIST images that come with the package. A `Pruner` takes the
# network to 80 % zeros in three rounds of an ordinary training loop.

# %%
import torch
from torch import nn

import spectral_engine as se
from spectral_engine.demo.data import fashion_mnist_test, to_tensors

TRAIN, TEST, BATCH, EPOCHS = 3000, 1000, 50, 3  # small, so that it takes seconds

torch.manual_seed(0)
images, labels = to_tensors(*fashion_mnist_test())
images = images.unsqueeze(1)
train = torch.utils.data.TensorDataset(images[:TRAIN], labels[:TRAIN])
held_out, truth = images[-TEST:], labels[-TEST:]


def network():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Flatten(), nn.Linear(64 * 16, 10),
    )  # fmt: skip


def accuracy(model):
    model.eval()
    with torch.no_grad():
        right = (model(held_out).argmax(1) == truth).float().mean().item()
    model.train()
    return right


# %%
model = network()
optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
steps = TRAIN // BATCH
pruner = se.Pruner(model, se.Iterative(0.8, rounds=3, every=steps // 2, start=steps))

for epoch in range(EPOCHS):
    for inputs, targets in torch.utils.data.DataLoader(train, BATCH, shuffle=True):
        pruner.step()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"epoch {epoch + 1}: accuracy {accuracy(model):.1%}")
pruner.finish()

# %% [markdown]
# What each round kept of the spectra, and what the training after it recovered:

# %%
print(pruner)
print(se.masks(model))

# %% [markdown]
# ## The same in Lightning
#
# Where it is installed. The callback keeps the pruner in Lightning's checkpoints.

# %%
try:
    import lightning
except ModuleNotFoundError:
    print("lightning is not installed: pip install lightning")
else:

    class Classifier(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()

        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), 2e-3)

    module = Classifier()
    pruner = se.Pruner(module, se.Iterative(0.8, rounds=3, every=steps // 2, start=steps))
    trainer = lightning.Trainer(
        callbacks=[se.lightning_callback(pruner=pruner)], max_epochs=EPOCHS, accelerator="cpu",
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(train, BATCH, shuffle=True))
    print(f"accuracy {accuracy(module.net):.1%}")
