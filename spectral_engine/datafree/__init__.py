"""What stands in for data where a user has none: simulated inputs, and errors measured on them."""
