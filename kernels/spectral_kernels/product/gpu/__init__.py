"""Triton kernels that decode a packed matrix and multiply by it; imported only for GPU tensors."""
