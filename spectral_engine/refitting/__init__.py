"""Kept entries adjusted, and masks found for it."""
