"""What a folder's README says of what was done to its weights."""
