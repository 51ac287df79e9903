"""Data, networks and the loop that trains them."""
