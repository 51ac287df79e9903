"""The contract in NumPy and plain Python: stream, laws, budget, oracle."""
