"""What a pass over the batches gathers, in one process or in several."""
