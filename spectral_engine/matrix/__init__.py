"""One matrix: sparsified, refitted, and how far it moved."""
