"""`python -m spectral_engine`: the command line, where its script is not on the path."""

from spectral_engine.cli import main

main()
