"""Chunked local attention: a query sees its own chunk of the sequence and the neighbouring ones."""
