"""Several processes, and tensors of which each holds a part."""
