"""How fast sparsification runs on the device at hand."""
