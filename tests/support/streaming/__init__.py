"""What tests of streaming share."""
