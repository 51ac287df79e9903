"""`python -m spectral_engine.cli`."""

from spectral_engine.cli import main

main()
