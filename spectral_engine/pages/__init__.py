"""Reports as tables on a terminal, as pages in a browser, and as cells of a notebook."""
