"""Blocks of a pruned model fitted to what they give in the dense one."""
