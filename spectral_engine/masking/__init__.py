"""Zeros that stay zero."""
