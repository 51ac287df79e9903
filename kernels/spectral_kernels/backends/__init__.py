"""Where the kernels run: one protocol, the CPU and the GPU behind it."""
