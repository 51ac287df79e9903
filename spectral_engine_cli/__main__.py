"""`python -m spectral_engine_cli`."""

from spectral_engine_cli import main

main()
