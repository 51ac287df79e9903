"""The spectra of a network's weights."""
