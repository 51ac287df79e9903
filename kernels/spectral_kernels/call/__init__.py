"""What a user calls: arguments in, a sparse matrix out."""
