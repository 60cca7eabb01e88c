"""herl on one GPU, measured: see `__main__.py`."""
