"""Products with matrices held otherwise than as bits: by gaps, and by N columns of every M."""
