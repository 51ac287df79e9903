"""A matrix, or a stack of matrices, made sparse."""
