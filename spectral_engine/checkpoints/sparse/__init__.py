"""Sparse matrices in safetensors: how their parts are made, named and read as dense tensors."""
