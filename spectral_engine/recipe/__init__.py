"""What is asked of a pruning, as values."""
