"""Which weights of a model are pruned, and how each is seen as a matrix."""
