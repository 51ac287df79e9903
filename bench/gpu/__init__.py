"""The GPU kernels on a CUDA device, checked and timed: `suite` is what `make gpu` runs."""
