"""The formats of weight files: safetensors, torch.save, .npz."""
