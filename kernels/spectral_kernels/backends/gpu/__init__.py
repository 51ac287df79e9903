"""GPU kernels, written in Triton: fused, one read and one write of the matrix."""
