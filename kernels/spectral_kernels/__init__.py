"""Arrays in, arrays out: the kernels of spectrum-preserving sparsification."""
