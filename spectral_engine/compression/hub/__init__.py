"""How transformers loads and saves compressed folders."""
