"""What a run reads and keeps on the disk: weights, outputs of blocks, what has been done."""
