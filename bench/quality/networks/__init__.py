"""The five networks of the quality benchmark, and the text that two of them read."""
